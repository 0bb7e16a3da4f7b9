"""SparseGPT's repair: each pruned column's error is moved to the columns on its right."""

from __future__ import annotations

from dataclasses import dataclass

from lowdim.core.errors import RecipeError


@dataclass(frozen=True)
class SparseGPT:
    """Compensate pruned weights column by column with the inverse Hessian of the squared output error.

    Args:
        damping: share of the Hessian's mean diagonal that is added to its diagonal; above 0.
        block: columns that are pruned together; their mask is drawn before any of them is updated.

    Raises:
        RecipeError: a setting is out of its range.

    Paper: "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot", arXiv 2301.00774.
    """

    damping: float = 0.01
    block: int = 128

    def __post_init__(self) -> None:
        if not 0 < self.damping < float("inf"):
            raise RecipeError(f"damping must be a positive number, got {self.damping}. The paper uses 0.01.")
        if self.block < 1:
            raise RecipeError(f"block must be at least 1 column, got {self.block}. The paper uses 128.")

"""DSnoT: swaps pruned weights for kept ones, row by row, until the expected output error is small."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowdim.core.errors import RecipeError

if TYPE_CHECKING:
    from torch import Tensor

    from lowdim.core.statistics import InputStatistics


@dataclass(frozen=True)
class DSnoT:
    """Swap kept and pruned weights of each row to shrink the row's expected output error; values stay.

    Args:
        max_cycles: most swaps per row; 0 returns the mask as it came.
        threshold: absolute row error at which a row is left alone. It is a sum over one sequence of the
            paper's 2048 tokens, whatever the calibration context: 0.1 means 0.1 / 2048 per token.
        power: exponent of the input variance by which a candidate's contribution is divided.
        same_sign: accept a swap only if the row error keeps its sign. N:M patterns always do.
        mlp: refine the MLP layers too; the paper refines attention alone.

    Raises:
        RecipeError: a setting is out of its range.

    Paper: "Dynamic Sparse No Training: Training-Free Fine-tuning for Sparse LLMs", arXiv 2310.08915.
    """

    max_cycles: int = 50
    threshold: float = 0.1
    power: float = 1.0
    same_sign: bool = False
    mlp: bool = False

    def __post_init__(self) -> None:
        if self.max_cycles < 0:
            raise RecipeError(f"max_cycles must be 0 or more, got {self.max_cycles}. The paper uses 50.")
        if not self.threshold >= 0:
            raise RecipeError(f"threshold must be 0 or more, got {self.threshold}. The paper uses 0.1.")
        if not 0 <= self.power < float("inf"):
            raise RecipeError(f"power must be 0 or more, got {self.power}. The paper uses 1.")

    @property
    def needs(self) -> frozenset[str]:
        """Statistics that `refine` reads."""
        return frozenset({"moments"})

    def wants(self, layer: str) -> bool:
        """Whether a layer is refined: attention, told by its name, and the rest only with ``mlp``."""
        return self.mlp or "attn" in layer or "attention" in layer

    def refine(
        self, weight: Tensor, mask: Tensor, statistics: InputStatistics, scores: Tensor, group: int
    ) -> Tensor:
        """Return the refined mask; see `lowdim.prune.refine.swap.swap`.

        Args:
            weight: fp32 ``[out, in]``.
            mask: kept entries, bool ``[out, in]``.
            statistics: of the layer's input, with moments.
            scores: the score that drew the mask, ``[out, in]``.
            group: M of an N:M pattern, else 0.
        """
        from lowdim.prune.refine.swap import swap

        wanda = weight.abs() * statistics.mean_square().sqrt()
        return swap(
            weight,
            mask,
            statistics.total / max(1, statistics.tokens),
            statistics.variance(),
            scores if group else wanda,
            max_cycles=self.max_cycles,
            threshold=self.threshold,
            power=self.power,
            same_sign=self.same_sign,
            group=group,
        )

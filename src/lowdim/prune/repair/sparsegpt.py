"""SparseGPT's repair: each pruned column's error is moved to the columns on its right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowdim.core.errors import clash
from lowdim.core.settings import count
from lowdim.prune.repair.compensation import COLUMNS, Compensation

if TYPE_CHECKING:
    from lowdim.core.choices import Choices


@dataclass(frozen=True)
class SparseGPT(Compensation):
    """Compensate pruned weights column by column with the inverse Hessian of the squared output error.

    The sweep (`lowdim.prune.repair.sweep`) makes up for pruning and rounding together, from the dense weights on.

    Args:
        damping: share of the Hessian's mean diagonal that is added to its diagonal; above 0.
        block: columns that are pruned together; their mask is drawn before any of them is updated.

    Paper: "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot", arXiv 2301.00774.
    """

    block: int = count(COLUMNS)

    @property
    def columns(self) -> int:
        """The block."""
        return self.block

    def check(self, recipe: Choices) -> None:
        """Refuse blocks that cut a group in two, and two widths of blocks."""
        group, asked = recipe.pattern.swap_span or 1, recipe.pattern.own_block
        if self.block % group:
            raise clash(
                f"repair.block={self.block}",
                f"pattern={recipe.pattern}",
                f"a group of {group} columns would be cut in two",
                f"Choose a multiple of {group}, such as repair.block={max(1, COLUMNS // group) * group}",
            )
        if asked not in (None, self.block):
            raise clash(
                f"pattern.block={asked}",
                f"repair.block={self.block}",
                "SparseGPT masks and compensates the same columns together",
                f"Leave pattern.block out, or write {self.block}",
            )
        super().check(recipe)

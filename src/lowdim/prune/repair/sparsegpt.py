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

    Raises:
        RecipeError: a setting is out of its range.

    Paper: "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot", arXiv 2301.00774.
    """

    block: int = count(COLUMNS)

    @property
    def columns(self) -> int:
        """The block."""
        return self.block

    def check(self, recipe: Choices) -> None:
        """Refuse two widths of blocks, and a width where no mask is drawn block by block."""
        asked = recipe.pattern.own_block
        if asked not in (None, self.block):
            raise clash(
                f"pattern.block={asked}",
                f"repair.block={self.block}",
                "SparseGPT masks and compensates the same columns together",
                f"Leave pattern.block out, or write {self.block}",
            )
        if self.block != COLUMNS and not self._draws_blocks(recipe):
            raise clash(
                f"repair.block={self.block}",
                _decides(recipe),
                "no mask is drawn from blocks of columns there, and compensation does not depend on them",
                "Leave repair.block out",
            )
        super().check(recipe)

    def _draws_blocks(self, recipe: Choices) -> bool:
        legal = recipe.legal
        if legal.compares == "column-block":
            return True
        sweeps = recipe.score.sweep_damping is not None and not recipe.refine.moves and self.draws(legal)
        return sweeps and legal.sweep_width(self.block, drawn=False) != legal.sweep_width(COLUMNS, drawn=False)


def _decides(recipe: Choices) -> str:
    """Return the choice by which masks are drawn otherwise than block by block."""
    if recipe.allocation.spans_model:
        return f"allocation={recipe.word('allocation')}"
    if recipe.pattern.compares not in ("auto", ""):
        return f"pattern.group={recipe.pattern.compares}"
    if recipe.refine.moves and not recipe.pattern.groups_of:
        return f"refine={recipe.word('refine')}"
    tiles = recipe.pattern.swept and not recipe.pattern.groups_of
    if recipe.pattern.compares or (tiles and recipe.score.sweep_damping is None):
        return f"score={recipe.word('score')}"
    return f"pattern={recipe.pattern}"

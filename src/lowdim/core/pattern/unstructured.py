"""Single weights, compared within a row, a block of columns, the matrix or the whole model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Literal, cast

from lowdim.core.budget import apportion
from lowdim.core.choices import Choices
from lowdim.core.errors import RecipeError, clash
from lowdim.core.lazy import torch
from lowdim.core.pattern.base import Pattern
from lowdim.core.pattern.units import Entries, Shape
from lowdim.core.settings import count
from lowdim.core.topk import keep_top, keep_top_rows

if TYPE_CHECKING:
    from torch import Tensor

Group = Literal["auto", "row", "matrix", "column-block", "global"]


@dataclass(frozen=True)
class Unstructured(Pattern):
    """Any mask is legal; ``group`` says which weights compete for the same budget.

    "row": every output row keeps the same number, to one weight (Wanda). "matrix": the layer as a whole
    (magnitude). "column-block": ``block`` input columns over all rows (SparseGPT). "global": all layers at
    once, which is an allocation; given its counts, a layer's mask is that of "matrix". "auto": what the score
    asks for.

    Example:
        >>> import torch
        >>> scores = torch.tensor([[4.0, 2.0, 1.0, 0.4], [0.4, 0.3, 10.0, 0.02]])
        >>> Unstructured("row").mask(scores, 4).int()
        tensor([[1, 1, 0, 0],
                [1, 0, 1, 0]], dtype=torch.int32)
        >>> Unstructured("matrix").mask(scores, 4).int()
        tensor([[1, 1, 1, 0],
                [0, 0, 1, 0]], dtype=torch.int32)
    """

    group: Group = "auto"
    block: int = count(128)

    def __str__(self) -> str:
        return "unstructured"

    @property
    def unit_size(self) -> int:
        """One weight."""
        return 1

    @property
    def swept(self) -> bool:
        """Blocks of columns can be drawn one after another."""
        return self.group == "column-block"

    @property
    def swap_span(self) -> int | None:
        """A weight may stand for any other of its row."""
        return 0

    @property
    def compares(self) -> str:
        """The group."""
        return self.group

    @property
    def own_block(self) -> int | None:
        """The block, if it is not the usual one."""
        return None if self.block == type(self).block else self.block

    def check(self, recipe: Choices) -> None:
        """Refuse to compare over the whole model what is allocated layer by layer."""
        super().check(recipe)
        if self.group == "global" and not recipe.allocation.spans_model:
            allocation = recipe.word("allocation")
            raise clash(
                "pattern.group=global",
                f"allocation={allocation}",
                "weights compared over the whole model decide each layer's share themselves",
                f"Choose allocation=global, or pattern.group=matrix to keep {allocation}",
            )
        if self.own_block is not None and recipe.legal.compares != "column-block":
            raise clash(
                f"pattern.block={self.block}",
                f"pattern.group={recipe.legal.compares}",
                "only blocks of columns have a width",
                "Leave pattern.block out, or choose pattern.group=column-block",
            )

    def resolve(self, group: str, block: int | None = None) -> Unstructured:
        """Return the pattern with "auto" replaced by ``group``; blocks of columns are as wide as ``block``."""
        found = replace(self, group=cast(Group, group)) if self.group == "auto" else self
        return replace(found, block=block) if found.swept and block else found

    def sweep_width(self, block: int, drawn: bool) -> int:
        """Return the pattern's own block."""
        return self.block

    def sweep_mask(self, scores: Tensor, keep: int) -> Tensor:
        """Compare all weights of a range."""
        return keep_top(scores, keep)

    def check_shape(self, name: str, rows: int, cols: int) -> None:
        """Every shape is legal."""

    def units(self, name: str, shape: Shape) -> Entries:
        """Return single weights, which compete over the whole layer.

        Raises:
            RecipeError: ``group`` asks for rows or blocks of columns.
        """
        if self.group in ("row", "column-block") or self.own_block is not None:
            raise RecipeError(
                f"pattern unstructured is trained without groups; got group {self.group!r}, block {self.block}. "
                "Use fan-in for rows"
            )
        return Entries(shape, prod(shape))

    def mask(self, scores: Tensor, keep: int) -> Tensor:
        """Keep the best ``keep`` weights, group by group; see the class."""
        if self.group == "row":
            return _by_row(scores, keep)
        if self.group == "column-block":
            return _by_columns(scores, keep, self.block)
        if self.group == "auto":
            raise ValueError('group "auto" must be resolved to the score\'s own group before a mask is drawn')
        return keep_top(scores, keep)


def _by_row(scores: Tensor, keep: int) -> Tensor:
    rows = scores.shape[0]
    if rows == 0 or keep % rows == 0:
        return keep_top_rows(scores, keep // max(1, rows))
    counts = torch.full((rows,), keep // rows)
    counts[: keep % rows] += 1
    return keep_top_rows(scores, counts)


def _by_columns(scores: Tensor, keep: int, block: int) -> Tensor:
    parts = scores.split(block, dim=1)
    sizes = [part.numel() for part in parts]
    counts = apportion(sizes, keep, sizes)
    return torch.cat([keep_top(part, count) for part, count in zip(parts, counts, strict=True)], dim=1)

"""Single weights, compared within a row, a block of columns, the matrix or the whole model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Literal, cast, get_args

from lowdim.core.budget import apportion
from lowdim.core.errors import RecipeError, suggest
from lowdim.core.pattern.base import Pattern
from lowdim.core.pattern.units import Entries, Shape
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
    block: int = 128

    def __post_init__(self) -> None:
        if self.group not in get_args(Group):
            raise RecipeError(f"unknown group {self.group!r}. {suggest(self.group, get_args(Group))}")
        if self.block < 1:
            raise RecipeError(f"block must be at least one column; got {self.block}")

    def __str__(self) -> str:
        return "unstructured"

    @property
    def unit_size(self) -> int:
        """One weight."""
        return 1

    def resolve(self, group: str) -> Unstructured:
        """Return the pattern with "auto" replaced by ``group``."""
        return replace(self, group=cast(Group, group)) if self.group == "auto" else self

    def check_shape(self, name: str, rows: int, cols: int) -> None:
        """Every shape is legal."""

    def units(self, name: str, shape: Shape) -> Entries:
        """Return single weights, which compete over the whole layer.

        Raises:
            RecipeError: ``group`` asks for rows or blocks of columns.
        """
        if self.group in ("row", "column-block"):
            raise RecipeError(
                f"pattern unstructured is trained without groups; got group {self.group!r}. Use fan-in for rows"
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
    import torch

    rows = scores.shape[0]
    if rows == 0 or keep % rows == 0:
        return keep_top_rows(scores, keep // max(1, rows))
    counts = torch.full((rows,), keep // rows)
    counts[: keep % rows] += 1
    return keep_top_rows(scores, counts)


def _by_columns(scores: Tensor, keep: int, block: int) -> Tensor:
    import torch

    parts = scores.split(block, dim=1)
    sizes = [part.numel() for part in parts]
    counts = apportion(sizes, keep, sizes)
    return torch.cat([keep_top(part, count) for part, count in zip(parts, counts, strict=True)], dim=1)

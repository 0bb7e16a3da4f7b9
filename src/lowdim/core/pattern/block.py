"""Rectangular blocks: a tile of weights stands or falls together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowdim.core.errors import PatternError
from lowdim.core.pattern.base import Pattern
from lowdim.core.pattern.units import Blocks, Shape, whole
from lowdim.core.settings import count
from lowdim.core.topk import keep_top

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Block(Pattern):
    """Tiles of ``rows`` outputs by ``cols`` inputs; a tile's score is the sum of its weights' scores.

    Tiles compete over the whole layer.

    Paper: "Block-Sparse Recurrent Neural Networks", arXiv 1711.02782.

    Example:
        >>> import torch
        >>> Block(1, 2).mask(torch.tensor([[4.0, 0.0, 3.0, 3.0]]), 2)
        tensor([[False, False,  True,  True]])
    """

    rows: int = count(16)
    cols: int = count(16)

    def __str__(self) -> str:
        return f"{self.rows}x{self.cols}"

    @property
    def unit_size(self) -> int:
        """Weights in one tile."""
        return self.rows * self.cols

    @property
    def swept(self) -> bool:
        """Tiles of one range of columns can be drawn before the next."""
        return True

    def sweep_width(self, block: int, drawn: bool) -> int:
        """Return whole tiles, as many as fit into the block."""
        return self.cols * max(1, block // self.cols)

    def check_shape(self, name: str, rows: int, cols: int) -> None:
        """Refuse a shape that does not fall into whole tiles."""
        if rows % self.rows or cols % self.cols:
            raise PatternError(
                f"{name} is {rows} x {cols}, which does not fall into blocks of {self}. Leave the layer out "
                f"of the recipe, or use blocks whose rows divide {rows} and whose columns divide {cols}"
            )

    def units(self, name: str, shape: Shape) -> Blocks:
        """Return tiles, each with the whole kernel of every pair of channels ("1x1" is kernel-wise)."""
        tiles = whole(name, shape, 0, self.rows, "block") * whole(name, shape, 1, self.cols, "block")
        return Blocks(shape, tiles, rows=self.rows, cols=self.cols)

    def mask(self, scores: Tensor, keep: int) -> Tensor:
        """Keep the best ``keep / unit_size`` tiles, the count rounded to the nearest whole one."""
        rows, cols = scores.shape
        self.check_shape("the layer", rows, cols)
        tiles = scores.double().reshape(rows // self.rows, self.rows, cols // self.cols, self.cols).sum((1, 3))
        best = keep_top(tiles, (2 * keep + self.unit_size) // (2 * self.unit_size))
        return best.repeat_interleave(self.rows, 0).repeat_interleave(self.cols, 1)

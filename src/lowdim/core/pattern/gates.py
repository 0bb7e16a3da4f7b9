"""Gates: stacked parts of a recurrent matrix that keep the same number of weights."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from lowdim.core.pattern.base import Pattern
from lowdim.core.pattern.fan_in import each
from lowdim.core.pattern.units import Entries, Shape, whole
from lowdim.core.settings import count
from lowdim.core.topk import keep_top_rows

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Gates(Pattern):
    """Single weights, of which each of the ``gates`` parts stacked in the rows keeps the same number, exactly.

    Example:
        >>> import torch
        >>> Gates(2).mask(torch.tensor([[4.0, 2.0], [1.0, 3.0], [9.0, 8.0], [7.0, 6.0]]), 4).int().tolist()
        [[1, 0], [0, 1], [1, 1], [0, 0]]
    """

    gates: int = count(4, why="LSTM 4, GRU 3")

    def __str__(self) -> str:
        return f"gates:{self.gates}"

    @property
    def unit_size(self) -> int:
        """One weight, though every gate changes by one at a time."""
        return 1

    @property
    def swap_span(self) -> int | None:
        """A weight may stand for any other of its row, which is of one gate."""
        return 0

    def check_shape(self, name: str, rows: int, cols: int) -> None:
        """Refuse rows that are not whole gates."""
        whole(name, (rows, cols), 0, self.gates, "gate")

    def units(self, name: str, shape: Shape) -> Entries:
        """Return single weights, in groups of one gate."""
        whole(name, shape, 0, self.gates, "gate")
        return Entries(shape, prod(shape), groups=self.gates)

    def mask(self, scores: Tensor, keep: int) -> Tensor:
        """Keep the best ``keep / gates`` weights of each gate, the number rounded to the nearest whole one."""
        self.check_shape("the layer", *scores.shape)
        parts = scores.reshape(self.gates, scores.numel() // self.gates)
        return keep_top_rows(parts, each(keep, self.gates)).reshape(scores.shape)

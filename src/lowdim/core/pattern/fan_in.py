"""Constant fan-in: every output keeps the same number of inputs."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from lowdim.core.pattern.base import Pattern
from lowdim.core.pattern.units import Entries, Shape
from lowdim.core.topk import keep_top_rows

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class FanIn(Pattern):
    """Single weights, of which each output keeps the same number, exactly.

    Pattern unstructured with group "row" lets the numbers differ by one, to meet a budget to the weight.

    Paper: "Dynamic Sparse Training with Structured Sparsity" (SRigL), arXiv 2305.02299.

    Example:
        >>> import torch
        >>> FanIn().mask(torch.tensor([[4.0, 2.0, 1.0, 0.4], [0.4, 0.3, 10.0, 0.02]]), 3).int()
        tensor([[1, 1, 0, 0],
                [1, 0, 1, 0]], dtype=torch.int32)
    """

    def __str__(self) -> str:
        return "fan-in"

    @property
    def unit_size(self) -> int:
        """One weight, though every output changes by one at a time."""
        return 1

    @property
    def swap_span(self) -> int | None:
        """A weight may stand for any other of its row."""
        return 0

    def check_shape(self, name: str, rows: int, cols: int) -> None:
        """Every shape is legal."""

    def units(self, name: str, shape: Shape) -> Entries:
        """Return single weights, in groups of one output."""
        return Entries(shape, prod(shape), groups=shape[0])

    def mask(self, scores: Tensor, keep: int) -> Tensor:
        """Keep the best ``keep / rows`` weights of each row, the number rounded to the nearest whole one."""
        return keep_top_rows(scores, each(keep, len(scores)))


def each(keep: int, groups: int) -> int:
    """Return how many weights each of equal groups keeps, rounded; halves round up.

    Example:
        >>> each(3, 2), each(4, 3)
        (2, 1)
    """
    return (2 * keep + groups) // (2 * max(1, groups))

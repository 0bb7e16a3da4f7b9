"""Constant fan-in: every output keeps the same number of inputs."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from lowdim.core.pattern.base import Pattern
from lowdim.core.pattern.units import Entries, Shape
from lowdim.core.topk import keep_top_rows

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class EqualParts(Pattern):
    """Single weights, of which each of several equal parts of the rows keeps the same number, exactly."""

    @abstractmethod
    def parts(self, rows: int) -> int:
        """Return how many parts there are."""

    @property
    def unit_size(self) -> int:
        """One weight, though every part changes by one at a time."""
        return 1

    @property
    def swap_span(self) -> int | None:
        """A weight may stand for any other of its row, which is in one part."""
        return 0

    def check_shape(self, name: str, rows: int, cols: int) -> None:
        """Every shape is legal, unless the rows cannot be parted."""

    def units(self, name: str, shape: Shape) -> Entries:
        """Return single weights, in groups of one part."""
        self.check_shape(name, *shape[:2])
        return Entries(shape, prod(shape), groups=self.parts(shape[0]))

    def mask(self, scores: Tensor, keep: int) -> Tensor:
        """Keep the best ``keep / parts`` weights of each part, the number rounded to the nearest whole one."""
        self.check_shape("the layer", *scores.shape)
        parts = self.parts(len(scores))
        in_parts = scores.reshape(parts, scores.numel() // max(1, parts))
        return keep_top_rows(in_parts, each(keep, parts)).reshape(scores.shape)


@dataclass(frozen=True)
class FanIn(EqualParts):
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

    def parts(self, rows: int) -> int:
        """Return the number of rows: each is a part."""
        return rows


def each(keep: int, groups: int) -> int:
    """Return how many weights each of equal groups keeps, rounded; halves round up.

    Example:
        >>> each(3, 2), each(4, 3)
        (2, 1)
    """
    return (2 * keep + groups) // (2 * max(1, groups))

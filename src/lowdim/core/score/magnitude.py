"""Magnitude: the size of the weight itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowdim.core.score.base import ColumnScore

if TYPE_CHECKING:
    from lowdim.core.statistics import InputStatistics


@dataclass(frozen=True)
class Magnitude(ColumnScore):
    """S_ij = |W_ij|, compared over the whole layer.

    Paper: "Learning both Weights and Connections for Efficient Neural Networks", arXiv 1506.02626.

    Example:
        >>> import torch
        >>> Magnitude().scaled(torch.tensor([[1.0, -2.0]]), None)
        tensor([[1., 2.]])
    """

    @property
    def default_group(self) -> str:
        """The whole matrix."""
        return "matrix"

    def column_scale(self, stats: InputStatistics | None) -> None:
        """Return None: every column counts the same."""
        return

"""Static sparse training: masks that never move."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lowdim.train.sparse.method import Method


@dataclass(frozen=True)
class Static(Method):
    """Masks drawn at random once, or given, and trained as they are: the baseline that every method must beat.

    Paper: "The Unreasonable Effectiveness of Random Pruning: Return of the Most Naive Baseline for Sparse Training",
    ICLR 2022, arXiv 2202.02643.

    Example:
        >>> Static().due(100, 1000)
        False
    """

    moves: ClassVar[bool] = False

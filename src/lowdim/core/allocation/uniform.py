"""Uniform: the same sparsity everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from lowdim.core.allocation.base import Allocation, AllocationResult, LayerInfo, Scan


@dataclass(frozen=True)
class Uniform(Allocation):
    """S_l = S for every layer.

    Example:
        >>> Uniform().allocate([LayerInfo("a", 0, 4, 4)], 0.5, lambda: iter([])).sparsities
        {'a': 0.5}
    """

    fits_groups: ClassVar[bool] = True

    def allocate(self, layers: Sequence[LayerInfo], sparsity: float, scan: Scan) -> AllocationResult:
        """Return the target for every layer."""
        return AllocationResult({info.name: sparsity for info in layers})

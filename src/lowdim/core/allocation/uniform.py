"""Uniform: the same sparsity everywhere, or almost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from lowdim.core.allocation.base import Allocation, AllocationResult, LayerInfo, Scan
from lowdim.core.allocation.by_shape import ByShape, Shape, around


@dataclass(frozen=True)
class Uniform(Allocation):
    """S_l = S for every layer.

    Example:
        >>> Uniform().allocate([LayerInfo("a", 0, (4, 4))], 0.5, lambda: iter([])).sparsities
        {'a': 0.5}
    """

    fits_groups: ClassVar[bool] = True

    def allocate(self, layers: Sequence[LayerInfo], sparsity: float, scan: Scan) -> AllocationResult:
        """Return the target for every layer."""
        return AllocationResult({info.name: sparsity for info in layers})


@dataclass(frozen=True)
class UniformPlus(ByShape):
    """Keep the first layer dense and the last at a density of 0.2 or more; the others share one density.

    The last layer is set to 0.2 when the target density D is below that, and is one of the others when not.
    The others get (D * N - fixed weights) / (weights of the others). The authors' code divides by N instead,
    which misses the target.

    Paper: "The Unreasonable Effectiveness of Random Pruning", arXiv 2202.02643.

    Example:
        >>> found = UniformPlus().shares({"conv": (4, 2), "mid": (10, 10), "head": (5, 10)}, 0.8)
        >>> [round(d, 6) for d in found.values()]
        [1.0, 0.157333, 0.157333]
    """

    def shares(self, shapes: Mapping[str, Shape], sparsity: float) -> dict[str, float]:
        """Return the share of weights that each layer keeps.

        Raises:
            RecipeError: the first and the last layer alone exceed the budget.
        """
        names = list(shapes)
        fixed = {names[-1]: 0.2} if 1.0 - sparsity < 0.2 - 1e-9 else {}
        return around(shapes, sparsity, fixed | {names[0]: 1.0}, lambda _: 1.0, "uniform-plus")

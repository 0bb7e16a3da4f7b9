"""Uniform: the same sparsity everywhere, or almost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from lowdim.core.allocation.base import Allocation, AllocationResult, LayerInfo, Scan
from lowdim.core.allocation.by_shape import AroundEnds, Shape, around


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
class UniformPlus(AroundEnds):
    """Keep the first layer dense and the classifier at a density of 0.2 or more; the others share one density.

    The classifier is set to 0.2 when the target density D is below that, and is one of the others when not; it is
    part of the budget even where it would stay dense by default, see `lowdim.models.structure.selection.ends`. The
    others get (D * N - fixed weights) / (weights of the others). The authors' code divides by N instead, which misses
    the target.

    Paper: "The Unreasonable Effectiveness of Random Pruning", arXiv 2202.02643.

    Example:
        >>> found = UniformPlus().shares({"conv": (4, 2), "mid": (10, 10), "head": (5, 10)}, 0.8)
        >>> [round(d, 6) for d in found.values()]
        [1.0, 0.157333, 0.157333]
    """

    def between(self, shapes: Mapping[str, Shape], sparsity: float, first: str, classifier: str) -> dict[str, float]:
        """Return the share of weights that each layer keeps.

        Raises:
            RecipeError: the first layer and the classifier alone exceed the budget.
        """
        fixed = {classifier: 0.2} if 1.0 - sparsity < 0.2 - 1e-9 else {}
        dense = {first: 1.0} if first else {}
        return around(shapes, sparsity, fixed | dense, lambda _: 1.0, "uniform-plus")

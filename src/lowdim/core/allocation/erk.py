"""Erdos-Renyi kernel: ER with all dimensions of a convolution's kernel."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import overload

from lowdim.core.allocation.by_shape import AroundEnds, ByShape, Key, Shape, around, check_shapes, spread
from lowdim.core.errors import RecipeError
from lowdim.core.settings import check_sparsity, within


def erk_score(shape: Shape) -> float:
    """Return the sum of all dimensions over their product."""
    return sum(shape) / math.prod(shape)


@overload
def erk(shapes: Mapping[Key, Shape], sparsity: float, power: float = 1.0) -> dict[Key, float]: ...
@overload
def erk(shapes: Sequence[Shape], sparsity: float, power: float = 1.0) -> list[float]: ...
def erk(
    shapes: Mapping[Key, Shape] | Sequence[Shape], sparsity: float, power: float = 1.0
) -> dict[Key, float] | list[float]:
    """Erdos-Renyi kernel: density in proportion to (sum of dimensions / their product) ** power, none above 1.

    d_l = min(1, eps * p_l) with the one eps for which the kept weights are (1 - ``sparsity``) of all, found in
    closed form: small and narrow layers keep more.

    Args:
        shapes: the weights' shapes, (out, in, ...), by name or in order.
        sparsity: share of zeros over all layers, at least 0 and below 1.
        power: 0 gives uniform; the paper uses 1.

    Returns:
        The share each layer keeps, by name or in order; whole numbers of weights come from ``whole_counts``.

    Raises:
        RecipeError: the sparsity or a shape is impossible.

    Paper: "Rigging the Lottery: Making All Tickets Winners", arXiv 1911.11134.

    Example:
        >>> [round(d, 6) for d in erk([(300, 784), (100, 300), (10, 100)], 0.9)]
        [0.079568, 0.230189, 1.0]
    """
    if not math.isfinite(power):
        raise RecipeError(f"power must be finite; got {power}")
    if not isinstance(shapes, Mapping):
        return list(erk(dict(enumerate(shapes)), sparsity, power).values())
    density = 1.0 - check_sparsity(sparsity)
    return spread(check_shapes(shapes), density, lambda shape: erk_score(shape) ** power)


@dataclass(frozen=True)
class ERK(ByShape):
    """Density in proportion to (out + in + kernel height + ...) / (their product), none above 1; see `erk`.

    Of linear layers the same as ER.

    Args:
        power: of that score; 0 gives uniform, the paper uses 1.

    Paper: "Rigging the Lottery: Making All Tickets Winners", arXiv 1911.11134.

    Example:
        >>> ERK().shares({"conv": (8, 3, 3, 3), "fc": (10, 16)}, 0.2)
        {'conv': 0.6518518518518519, 'fc': 1.0}
    """

    power: float = 1.0

    def shares(self, shapes: Mapping[str, Shape], sparsity: float) -> dict[str, float]:
        """Return the share of weights that each layer keeps."""
        return erk(shapes, sparsity, self.power)


@dataclass(frozen=True)
class ERKPlus(AroundEnds):
    """ERK with the classifier at a density of its own, the others sparser by as much.

    The classifier is part of the budget, and becomes one of the sparse layers even where it would stay dense by
    default; see `lowdim.models.structure.selection.ends`.

    Args:
        classifier_density: share of its weights the classifier keeps.

    Paper: "The Unreasonable Effectiveness of Random Pruning", arXiv 2202.02643.

    Example:
        >>> list(ERKPlus().shares({"a": (4, 4), "b": (4, 4), "head": (4, 4)}, 0.5).values())
        [0.25, 0.25, 1.0]
    """

    classifier_density: float = within(1.0, above=0, most=1)

    def between(self, shapes: Mapping[str, Shape], sparsity: float, first: str, classifier: str) -> dict[str, float]:
        """Return the share of weights that each layer keeps.

        Raises:
            RecipeError: the classifier alone exceeds the budget, or leaves more than the others can take.
        """
        return around(shapes, sparsity, {classifier: self.classifier_density}, erk_score, "erk-plus")

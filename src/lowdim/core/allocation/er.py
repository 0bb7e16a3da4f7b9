"""Erdos-Renyi: small and narrow layers keep more."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from lowdim.core.allocation.by_shape import AroundEnds, ByShape, Key, Shape, around, check_shapes, spread
from lowdim.core.errors import RecipeError


def er_score(shape: Shape) -> float:
    """Return (out + in) / (out * in), the kernel left out; a vector counts as one output each."""
    return sum(shape[:2]) / math.prod(shape[:2])


@dataclass(frozen=True)
class ER(ByShape):
    """Density proportional to (in + out) / (in * out), none above 1, so that kept weights grow with in + out.

    d_l = min(1, eps * (in_l + out_l) / (in_l * out_l)), with the one eps that meets the budget; of a convolution
    the kernel does not count.

    Paper: "Scalable training of artificial neural networks with adaptive sparse connectivity inspired by network
    science" (SET), arXiv 1707.04780; the closed form with the limit is that of RigL, arXiv 1911.11134.

    Example:
        >>> found = ER().shares({"a": (10, 4), "b": (20, 10), "c": (5, 20)}, 0.8)
        >>> [round(d, 6) for d in found.values()]
        [0.344928, 0.147826, 0.246377]
    """

    def shares(self, shapes: Mapping[str, Shape], sparsity: float) -> dict[str, float]:
        """Return the share of weights that each layer keeps."""
        return spread(shapes, 1.0 - sparsity, er_score)


@dataclass(frozen=True)
class ERPlus(AroundEnds):
    """ER with the last layer dense, the rest sparser by as much.

    In training the last layer is the classifier, which is part of the budget and becomes one of the sparse layers even
    where it would stay dense by default; see `lowdim.models.structure.selection.ends`. In pruning it is the last weight
    of the last decoder block. The others share D' = (D * N - n_last) / (N - n_last) by ER, D being the target density
    and N all weights.

    Introduced (as ERK+) by "The Unreasonable Effectiveness of Random Pruning", arXiv 2202.02643, for a classifier kept
    dense; OWL (arXiv 2310.05175) compares it on language models as ER with the last layer forced dense at the same
    number of parameters. OWL's code does not contain it; this follows that description.

    Example:
        >>> list(ERPlus().shares({"a": (4, 4), "b": (4, 4), "c": (4, 4)}, 0.5).values())
        [0.25, 0.25, 1.0]
    """

    def between(self, shapes: Mapping[str, Shape], sparsity: float, first: str, classifier: str) -> dict[str, float]:
        """Return the share of weights that each layer keeps.

        Raises:
            RecipeError: the last layer alone holds more weights than the budget keeps.
        """
        return around(shapes, sparsity, {classifier: 1.0}, er_score, "er-plus")


def er_epsilon(shapes: Mapping[Key, Shape], epsilon: float) -> dict[Key, float]:
    """SET's first form: a layer keeps epsilon * (out + in) weights, all of them if it has no more.

    The sparsity follows from epsilon instead of being met.

    Paper: "Scalable training of artificial neural networks with adaptive sparse connectivity inspired by
    network science", arXiv 1707.04780.

    Example:
        >>> er_epsilon({"wide": (100, 100), "head": (2, 10)}, 20)
        {'wide': 0.4, 'head': 1.0}
    """
    if not epsilon > 0:
        raise RecipeError(f"epsilon must be above 0; got {epsilon}")
    return {
        name: min(1.0, epsilon * er_score(shape)) if math.prod(shape) else 0.0
        for name, shape in check_shapes(shapes).items()
    }

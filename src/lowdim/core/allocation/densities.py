"""Densities from nothing but the shapes of the weights: uniform, Erdos-Renyi and their kin."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar, overload

from lowdim.core.errors import RecipeError

Shape = Sequence[int]
Key = TypeVar("Key", bound=Hashable)

# A budget may miss by this share of all weights through float rounding before it counts as impossible.
_SLACK = 1e-9


def check_sparsity(sparsity: float) -> float:
    """Return a target share of zeros as a float.

    Raises:
        RecipeError: it is not a number, below 0, or not below 1.
    """
    if isinstance(sparsity, bool) or not isinstance(sparsity, (int, float)):
        raise RecipeError(f"sparsity must be a number such as 0.9 (the share of zeros); got {sparsity!r}")
    if not 0.0 <= sparsity < 1.0:
        hint = f"; did you mean {sparsity / 100:g}?" if 1.0 <= sparsity < 100.0 else ""
        raise RecipeError(
            f"sparsity must be at least 0 and below 1 (the share of zeros); got {sparsity}{hint}"
        )
    return float(sparsity)


def capped(scores: Sequence[float], sizes: Sequence[int], density: float) -> list[float]:
    """Return densities in proportion to scores, none above 1, whose size-weighted mean is the target.

    d_l = min(1, eps * p_l), p_l = ``scores``. While some eps * p_l exceeds 1, the layers of the largest p_l
    become dense and eps = (D * N - weights of dense layers) / sum of p_l n_l over the others, n_l = ``sizes``,
    D = ``density``, N = sum n_l; each round raises eps, so a dense layer stays dense. Layers of equal score
    get the target itself; an empty layer gets what its score says.

    Example:
        >>> capped([2.0, 1.0, 1.0], [10, 10, 10], 0.5)
        [0.75, 0.375, 0.375]
        >>> capped([8.0, 1.0, 1.0], [10, 10, 10], 0.5)
        [1.0, 0.25, 0.25]
    """
    if not scores or min(scores) == max(scores):
        return [density] * len(scores)
    kept, free = density * sum(sizes), sorted(set(scores))
    while free:
        bound = free[-1]
        weight = math.fsum(p * n for p, n in zip(scores, sizes, strict=True) if p <= bound)
        dense = sum(n for p, n in zip(scores, sizes, strict=True) if p > bound)
        eps = max(kept - dense, 0.0) / weight if weight else math.inf
        if eps * bound <= 1.0:
            return [1.0 if p > bound else eps * p for p in scores]
        free.pop()
    return [1.0] * len(scores)


def size_of(shape: Shape) -> int:
    """Return the number of weights of a shape."""
    return math.prod(shape)


def check_shapes(shapes: Mapping[Key, Shape]) -> Mapping[Key, Shape]:
    """Return the shapes, refusing what is not one.

    Raises:
        RecipeError: there is none, or one is not a sequence of whole numbers.
    """
    if not shapes:
        raise RecipeError("shapes must name at least one layer; got none")
    for name, shape in shapes.items():
        good = isinstance(shape, Sequence) and shape and all(isinstance(n, int) and n >= 0 for n in shape)
        if not good or isinstance(shape, str):
            raise RecipeError(
                f"the shape of {name} must be whole numbers such as (out, in) or (out, in, height, width); "
                f"got {shape!r}"
            )
    return shapes


def _spread(shapes: Mapping[Key, Shape], density: float, score: Callable[[Shape], float]) -> dict[Key, float]:
    sizes = [size_of(shape) for shape in shapes.values()]
    scores = [score(shape) if size else 0.0 for shape, size in zip(shapes.values(), sizes, strict=True)]
    return dict(zip(shapes, capped(scores, sizes, density), strict=True))


def _around(
    shapes: Mapping[Key, Shape],
    sparsity: float,
    fixed: Mapping[Key, float],
    score: Callable[[Shape], float],
    rule: str,
) -> dict[Key, float]:
    """Give some layers a density of their own and the others what the budget leaves."""
    others = {name: shape for name, shape in shapes.items() if name not in fixed}
    total = sum(map(size_of, shapes.values()))
    rest = sum(map(size_of, others.values()))
    taken = math.fsum(d * size_of(shapes[name]) for name, d in fixed.items())
    left = (1.0 - sparsity) * total - taken
    if not -_SLACK * total <= left <= rest + _SLACK * total:
        named = ", ".join(f"{name} at density {fixed[name]:g}" for name in shapes if name in fixed)
        raise RecipeError(
            f"{rule} keeps {named}, which leaves {left:g} weights for the other {rest} at sparsity "
            f"{sparsity:g}. Change the sparsity, or use another allocation such as erk"
        )
    density = min(max(left / rest, 0.0), 1.0) if rest else 0.0
    spread = _spread(others, density, score) if others else {}
    return {name: fixed[name] if name in fixed else spread[name] for name in shapes}


def er_score(shape: Shape) -> float:
    """Return (out + in) / (out * in), the kernel left out; a vector counts as one output each."""
    return sum(shape[:2]) / math.prod(shape[:2])


def erk_score(shape: Shape) -> float:
    """Return the sum of all dimensions over their product."""
    return sum(shape) / math.prod(shape)


def uniform(shapes: Mapping[Key, Shape], sparsity: float) -> dict[Key, float]:
    """Give every layer the same density.

    Example:
        >>> uniform({"a": (4, 4), "b": (4, 8)}, 0.75)
        {'a': 0.25, 'b': 0.25}
    """
    return dict.fromkeys(check_shapes(shapes), 1.0 - check_sparsity(sparsity))


def uniform_plus(shapes: Mapping[Key, Shape], sparsity: float) -> dict[Key, float]:
    """Keep the first layer dense and the last at a density of 0.2 or more; the others share one density.

    The last layer is set to 0.2 when the target density D is below that, and is one of the others when not.
    The others get (D * N - fixed weights) / (weights of the others). The authors' code divides by N instead,
    which misses the target.

    Raises:
        RecipeError: the first and the last layer alone exceed the budget.

    Paper: "The Unreasonable Effectiveness of Random Pruning", arXiv 2202.02643.

    Example:
        >>> found = uniform_plus({"conv": (4, 2), "mid": (10, 10), "head": (5, 10)}, 0.8)
        >>> [round(d, 6) for d in found.values()]
        [1.0, 0.157333, 0.157333]
    """
    names = list(check_shapes(shapes))
    density = 1.0 - check_sparsity(sparsity)
    fixed = {names[-1]: 0.2} if density < 0.2 - _SLACK else {}
    return _around(shapes, sparsity, fixed | {names[0]: 1.0}, lambda _: 1.0, "uniform-plus")


def er(shapes: Mapping[Key, Shape], sparsity: float) -> dict[Key, float]:
    """Erdos-Renyi: density in proportion to (out + in) / (out * in), whatever the kernel, none above 1.

    Paper: SET, arXiv 1707.04780, with the one factor that meets the budget, as RigL, arXiv 1911.11134.

    Example:
        >>> found = er({"a": (10, 4), "b": (20, 10), "c": (5, 20)}, 0.8)
        >>> [round(d, 6) for d in found.values()]
        [0.344928, 0.147826, 0.246377]
    """
    return _spread(check_shapes(shapes), 1.0 - check_sparsity(sparsity), er_score)


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
        The share each layer keeps, by name or in order; whole numbers of weights come from ``counts``.

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
    return _spread(check_shapes(shapes), density, lambda shape: erk_score(shape) ** power)


def erk_plus(
    shapes: Mapping[Key, Shape], sparsity: float, classifier_density: float = 1.0
) -> dict[Key, float]:
    """ERK with the last layer at a density of its own, the others sparser by as much.

    Args:
        shapes: the weights' shapes by name; the last is the classifier.
        sparsity: share of zeros over all layers, the last included.
        classifier_density: share of its weights the last layer keeps.

    Raises:
        RecipeError: the last layer alone exceeds the budget, or leaves more than the others can take.

    Paper: "The Unreasonable Effectiveness of Random Pruning", arXiv 2202.02643.

    Example:
        >>> list(erk_plus({"a": (4, 4), "b": (4, 4), "head": (4, 4)}, 0.5).values())
        [0.25, 0.25, 1.0]
    """
    if not 0.0 < classifier_density <= 1.0:
        raise RecipeError(f"classifier_density must be above 0 and at most 1; got {classifier_density}")
    check_sparsity(sparsity)
    last = list(check_shapes(shapes))[-1]
    return _around(shapes, sparsity, {last: classifier_density}, erk_score, "erk-plus")


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
        name: min(1.0, epsilon * er_score(shape)) if size_of(shape) else 0.0
        for name, shape in check_shapes(shapes).items()
    }

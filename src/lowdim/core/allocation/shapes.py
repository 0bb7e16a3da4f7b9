"""How many weights each layer keeps, from nothing but the shapes of the weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

from lowdim.core.allocation.densities import (
    Key,
    Shape,
    check_shapes,
    check_sparsity,
    er,
    er_epsilon,
    erk,
    erk_plus,
    size_of,
    uniform,
    uniform_plus,
)
from lowdim.core.budget import apportion
from lowdim.core.errors import RecipeError, suggest

__all__ = [
    "ALLOCATIONS",
    "ShapeAllocation",
    "check_sparsity",
    "counts",
    "er",
    "er_epsilon",
    "erk",
    "erk_plus",
    "resolve",
    "uniform",
    "uniform_plus",
]


@runtime_checkable
class ShapeAllocation(Protocol):
    """Any object that spreads a budget over named shapes."""

    def densities(self, shapes: Mapping[str, Shape], sparsity: float) -> Mapping[str, float]:
        """Return the share of weights each layer keeps."""


ALLOCATIONS: dict[str, Callable[[Mapping[str, Shape], float], dict[str, float]]] = {
    "uniform": uniform,
    "uniform-plus": uniform_plus,
    "er": er,
    "erk": erk,
    "erk-plus": erk_plus,
}


def counts(
    shapes: Mapping[Key, Shape], densities: Mapping[Key, float], sparsity: float | None = None
) -> dict[Key, int]:
    """Turn densities into whole numbers of weights whose total is exact.

    The total is round((1 - ``sparsity``) * N); remainders go to the largest fractional parts, of equal ones to
    the first layer. A layer keeps at least one weight, unless its density is 0 or it has none, and never more
    than it has.

    Args:
        shapes: the weights' shapes by name.
        densities: the share each of them keeps.
        sparsity: the target the densities were made for; None takes the densities' own total.

    Raises:
        RecipeError: the budget is smaller than the number of layers that must keep a weight, or larger than
            the layers of density above 0.

    Example:
        >>> shapes = {"a": (10, 4), "b": (20, 10), "c": (5, 20)}
        >>> counts(shapes, er(shapes, 0.8), 0.8)
        {'a': 14, 'b': 29, 'c': 25}
    """
    sizes = {name: size_of(shape) for name, shape in shapes.items()}
    quotas = {name: densities[name] * n for name, n in sizes.items()}
    live = [name for name, quota in quotas.items() if quota > 0]
    wanted = (
        sum(quotas.values()) if sparsity is None else (1.0 - check_sparsity(sparsity)) * sum(sizes.values())
    )
    total, room = round(wanted), sum(sizes[name] for name in live)
    if not len(live) <= total <= room:
        raise RecipeError(
            f"the sparsity leaves {total} weights, but {len(live)} layers must keep between {len(live)} and "
            f"{room} in all, at least one each. Change the sparsity, or leave layers out"
        )
    made = dict.fromkeys(sizes, 0)
    while small := [name for name in live if quotas[name] < 1.0]:
        made |= dict.fromkeys(small, 1)
        total -= len(small)
        live = [name for name in live if name not in set(small)]
        scale = total / math.fsum(quotas[name] for name in live) if live else 0.0
        quotas |= {name: min(quotas[name] * scale, float(sizes[name])) for name in live}
    shares = apportion([quotas[name] for name in live], total, [sizes[name] for name in live])
    return made | dict(zip(live, shares, strict=True))


def resolve(
    allocation: str | Mapping[str, float] | ShapeAllocation,
    shapes: Mapping[str, Shape],
    sparsity: float | None,
) -> dict[str, int]:
    """Return how many weights each layer keeps.

    Args:
        allocation: a name ("uniform", "uniform-plus", "er", "erk", "erk-plus"), the sparsity of every layer by
            name, or an object with ``densities(shapes, sparsity)``.
        shapes: the weights' shapes by name, in model order.
        sparsity: share of zeros over all layers. With sparsities by name it may be None; else they must meet
            it to one weight per layer.

    Raises:
        RecipeError: the name is unknown, the names are not exactly the layers, or the budget is impossible.

    Example:
        >>> resolve("erk", {"in": (300, 784), "mid": (100, 300), "head": (10, 100)}, 0.9)
        {'in': 18714, 'mid': 6906, 'head': 1000}
        >>> resolve({"a": 0.75, "b": 0.5}, {"a": (4, 4), "b": (4, 4)}, None)
        {'a': 4, 'b': 8}
    """
    check_shapes(shapes)
    if isinstance(allocation, Mapping):
        return _explicit(allocation, shapes, sparsity)
    if sparsity is None:
        raise RecipeError("sparsity must be given, such as 0.9 (the share of zeros); got None")
    check_sparsity(sparsity)
    if isinstance(allocation, str):
        if allocation not in ALLOCATIONS:
            raise RecipeError(f"unknown allocation {allocation!r}. {suggest(allocation, ALLOCATIONS)}")
        return counts(shapes, ALLOCATIONS[allocation](shapes, sparsity), sparsity)
    if not isinstance(allocation, ShapeAllocation):
        raise RecipeError(
            "allocation must be a name, a mapping from layers to sparsities or an object with "
            f"densities(shapes, sparsity); got {allocation!r}"
        )
    found = dict(allocation.densities(shapes, sparsity))
    _check_names("allocation", found, shapes)
    return counts(shapes, found, sparsity)


def _check_names(what: str, given: Mapping[str, float], shapes: Mapping[str, Shape]) -> None:
    for name, value in given.items():
        if name not in shapes:
            raise RecipeError(f"{what} names {name!r}, which is not a sparse layer. {suggest(name, shapes)}")
        if not 0.0 <= value <= 1.0:
            raise RecipeError(f"{what}[{name!r}] must be between 0 and 1; got {value}")
    missing = [name for name in shapes if name not in given]
    if missing:
        raise RecipeError(f"{what} must name every sparse layer; it lacks {', '.join(missing[:5])}")


def _explicit(
    sparsities: Mapping[str, float], shapes: Mapping[str, Shape], sparsity: float | None
) -> dict[str, int]:
    _check_names("allocation", sparsities, shapes)
    densities = {name: 1.0 - sparsities[name] for name in shapes}
    total = sum(map(size_of, shapes.values()))
    kept = math.fsum(densities[name] * size_of(shape) for name, shape in shapes.items())
    if sparsity is not None and abs((1.0 - check_sparsity(sparsity)) * total - kept) > len(shapes):
        raise RecipeError(
            f"allocation gives every layer a sparsity, {1 - kept / total:.7f} in all, but sparsity is "
            f"{sparsity:g}. Set sparsity to {1 - kept / total:.7f} or None"
        )
    return counts(shapes, densities)

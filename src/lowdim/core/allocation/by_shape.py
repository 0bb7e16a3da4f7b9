"""Allocations that look at nothing but the shapes of the weights."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeVar

from lowdim.core.allocation.base import Allocation, AllocationResult, LayerInfo, Scan
from lowdim.core.errors import RecipeError

Shape = Sequence[int]
Key = TypeVar("Key", bound=Hashable)

# A budget may miss by this share of all weights through float rounding before it counts as impossible.
_SLACK = 1e-9


@dataclass(frozen=True)
class ByShape(Allocation):
    """An allocation whose densities follow from the shapes of the weights."""

    @abstractmethod
    def shares(self, shapes: Mapping[str, Shape], sparsity: float) -> dict[str, float]:
        """Return the share of weights that each layer keeps.

        Raises:
            RecipeError: the budget cannot be met.
        """

    def densities(self, layers: Sequence[LayerInfo], sparsity: float, scan: Scan) -> dict[str, float]:
        """Return the share of weights that each layer keeps."""
        return self.shares({info.name: info.shape for info in layers}, sparsity)

    def allocate(self, layers: Sequence[LayerInfo], sparsity: float, scan: Scan) -> AllocationResult:
        """Return sparsities from the shapes alone."""
        found = self.densities(layers, sparsity, scan)
        return AllocationResult({name: 1.0 - density for name, density in found.items()})


@dataclass(frozen=True)
class AroundEnds(ByShape):
    """An allocation that gives the network's classifier, and perhaps its first layer, a density of their own.

    They are those of the network, whichever of its layers become sparse. Where nothing but shapes is known they are the
    last and the first of these; where a language model is pruned, whose head stays dense, those of its blocks.
    """

    takes_classifier: ClassVar[bool] = True

    @abstractmethod
    def between(self, shapes: Mapping[str, Shape], sparsity: float, first: str, classifier: str) -> dict[str, float]:
        """Return the share of weights that each layer keeps; ``first`` is empty where it is none of them."""

    def shares(self, shapes: Mapping[str, Shape], sparsity: float) -> dict[str, float]:
        """Return the share of weights that each layer keeps."""
        return self.between(shapes, sparsity, next(iter(shapes)), list(shapes)[-1])

    def densities(self, layers: Sequence[LayerInfo], sparsity: float, scan: Scan) -> dict[str, float]:
        """Return the share of weights that each layer keeps.

        Raises:
            RecipeError: the network is known, and its classifier is none of the layers.
        """
        named = {info.end: info.name for info in layers}
        if None in named:
            return super().densities(layers, sparsity, scan)
        if "classifier" not in named:
            raise RecipeError(
                f"allocation {self} gives the network's classifier a density of its own, but the classifier is not "
                "among the sparse layers. Leave it in, or use another allocation such as erk"
            )
        shapes = {info.name: info.shape for info in layers}
        return self.between(shapes, sparsity, named.get("first", ""), named["classifier"])


def layers_of(shapes: Mapping[str, Shape], ends: tuple[str, str] | None = None) -> list[LayerInfo]:
    """Return named shapes as layers, each a block of its own.

    Args:
        shapes: by name.
        ends: the names of the network's first layer and of its classifier, where it is known.

    Raises:
        RecipeError: there is none, or one is not a sequence of whole numbers.
    """
    checked = check_shapes(shapes).items()
    return [LayerInfo(name, block, tuple(shape), end_of(name, ends)) for block, (name, shape) in enumerate(checked)]


def end_of(name: str, ends: tuple[str, str] | None) -> Literal["first", "classifier", ""] | None:
    """Tell which end of the network a layer is; a network of one layer is a classifier."""
    if ends is None:
        return None
    return "classifier" if name == ends[1] else "first" if name == ends[0] else ""


def check_shapes(shapes: Mapping[Key, Shape]) -> Mapping[Key, Shape]:
    """Return the shapes; refuse anything that is not a shape.

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


def spread(shapes: Mapping[Key, Shape], density: float, score: Callable[[Shape], float]) -> dict[Key, float]:
    """Return densities in proportion to a score of each shape; see `capped`."""
    sizes = [math.prod(shape) for shape in shapes.values()]
    scores = [score(shape) if size else 0.0 for shape, size in zip(shapes.values(), sizes, strict=True)]
    return dict(zip(shapes, capped(scores, sizes, density), strict=True))


def around(
    shapes: Mapping[str, Shape],
    sparsity: float,
    fixed: Mapping[str, float],
    score: Callable[[Shape], float],
    rule: str,
) -> dict[str, float]:
    """Give some layers a density of their own and the others what the budget leaves.

    Raises:
        RecipeError: the fixed layers alone exceed the budget, or leave more than the others can take.
    """
    others = {name: shape for name, shape in shapes.items() if name not in fixed}
    total = sum(map(math.prod, shapes.values()))
    rest = sum(map(math.prod, others.values()))
    taken = math.fsum(d * math.prod(shapes[name]) for name, d in fixed.items())
    left = (1.0 - sparsity) * total - taken
    if not -_SLACK * total <= left <= rest + _SLACK * total:
        named = ", ".join(f"{name} at density {fixed[name]:g}" for name in shapes if name in fixed)
        most, least = math.floor(1000 * (1.0 - taken / total)), math.ceil(1000 * (1.0 - (taken + rest) / total))
        raise RecipeError(
            f"{rule} keeps {named}, which leaves {left:g} weights for the other {rest} at sparsity {sparsity:g}. "
            f"Choose a sparsity of at {f'most {most / 1000:g}' if left < 0 else f'least {least / 1000:g}'}, or another "
            "allocation such as erk"
        )
    density = min(max(left / rest, 0.0), 1.0) if rest else 0.0
    found = spread(others, density, score) if others else {}
    return {name: fixed[name] if name in fixed else found[name] for name in shapes}

"""Explicit: sparsities written into the recipe, or given by name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from lowdim.core.allocation.base import Allocation, AllocationResult, LayerInfo, Scan
from lowdim.core.allocation.counts import whole_counts
from lowdim.core.choices import Choices
from lowdim.core.errors import RecipeError, clash, suggest
from lowdim.core.recipe.which import expression, matches
from lowdim.core.settings import check_sparsity


@dataclass(frozen=True)
class Explicit(Allocation):
    """Named layers get the sparsity given; all others share what is left of the budget equally.

    Args:
        map: regular expressions, searched for in the layers' names, to sparsities; the first that matches
            counts. In a recipe of schema 2 they are globs, or regular expressions after "re:".

    Example:
        >>> layers = [LayerInfo("h.0.up", 0, (4, 4)), LayerInfo("h.1.up", 1, (4, 4))]
        >>> Explicit({"h.0": 0.25}).allocate(layers, 0.5, lambda: iter([])).sparsities
        {'h.0.up': 0.25, 'h.1.up': 0.75}
    """

    fits_groups: ClassVar[bool] = True

    map: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        if not self.map:
            raise RecipeError('allocation explicit needs map, from layers to sparsities, such as {"mlp": 0.7}')
        for text, value in self.map.items():
            if not 0.0 <= value <= 1.0:
                raise RecipeError(f"map[{text!r}] must be a share of zeros between 0 and 1; got {value}")

    def in_schema(self, schema: int) -> Explicit:
        """Return the allocation whose map is read as recipes of a schema mean it."""
        return Globs(self.map) if schema > 1 else self

    def check(self, recipe: Choices) -> None:
        """Refuse invalid expressions, and shares that are not a whole number of each group of the pattern."""
        pattern = recipe.pattern
        for text in self.map or {}:
            expression(text, recipe.schema_version, "allocation.map")
        for text, sparsity in (self.map or {}).items() if pattern.groups_of else ():
            near = pattern.at(sparsity).check_recipe(None)
            if abs(sparsity - near) > 1e-3:
                raise clash(
                    f"allocation.map[{text!r}]={sparsity:g}",
                    f"pattern={pattern}",
                    f"a whole number of every {pattern.groups_of} weights is kept",
                    f"Choose a multiple of 1/{pattern.groups_of}, such as {near:g}, or pattern=unstructured",
                )

    def allocate(self, layers: Sequence[LayerInfo], sparsity: float, scan: Scan) -> AllocationResult:
        """Return the sparsities given, and the rest of the budget for layers not named.

        Raises:
            RecipeError: an expression matches no layer, or the others cannot make up the budget.
        """
        given = self._given(layers)
        total = sum(info.numel for info in layers)
        rest = sum(info.numel for info in layers if info.name not in given)
        named = sum(given[info.name] * info.numel for info in layers if info.name in given)
        if not rest and abs(named - sparsity * total) > 1e-6 * total:
            raise RecipeError(
                f"allocation explicit names every layer, with mean sparsity {named / total:.7f}; the recipe "
                f"asks for {sparsity:g}. Set sparsity to {named / total:.7f}, or leave some layers unnamed "
                "to make up the rest"
            )
        other = (sparsity * total - named) / rest if rest else 0.0
        if not -1e-9 <= other <= 1.0 + 1e-9:
            raise RecipeError(
                f"allocation explicit leaves the layers it does not name sparsity {other:.4f}, outside 0 to "
                f"1, to reach {sparsity:g} in all. Change map or sparsity"
            )
        other = min(max(other, 0.0), 1.0)
        return AllocationResult({info.name: given.get(info.name, other) for info in layers})

    def _given(self, layers: Sequence[LayerInfo]) -> dict[str, float]:
        assert self.map
        given: dict[str, float] = {}
        for text, value in self.map.items():
            found = [info.name for info in layers if self._names(text, info.name)]
            if not found:
                raise RecipeError(f"map: {text!r} matches no layer; layers are named like {layers[0].name!r}")
            for name in found:
                given.setdefault(name, value)
        return given

    def _names(self, text: str, layer: str) -> bool:
        return bool(expression(text, 1, "map").search(layer))


@dataclass(frozen=True)
class Globs(Explicit):
    """The same in a recipe of schema 2: globs on the names of layers or weights, or expressions after ``re:``.

    Example:
        >>> layers = [LayerInfo("h.0.up", 0, (4, 4)), LayerInfo("h.1.up", 1, (4, 4))]
        >>> Globs({"h.0.*": 0.25}).allocate(layers, 0.5, lambda: iter([])).sparsities
        {'h.0.up': 0.25, 'h.1.up': 0.75}
    """

    def _names(self, text: str, layer: str) -> bool:
        return matches(text, f"{layer}.weight")


@dataclass(frozen=True)
class Named(Allocation):
    """Every layer gets the sparsity given for its exact name: what a mapping means as an ``allocation``.

    Args:
        sparsities: share of zeros per layer; each layer has one.

    Example:
        >>> layers = [LayerInfo("a", 0, (4, 4)), LayerInfo("b", 1, (4, 4))]
        >>> Named({"a": 0.75, "b": 0.5}).counts(layers, None, lambda: iter([]))
        {'a': 4, 'b': 8}
    """

    sparsities: Mapping[str, float]

    def allocate(self, layers: Sequence[LayerInfo], sparsity: float, scan: Scan) -> AllocationResult:
        """Return the sparsities given, in the order of the layers.

        Raises:
            RecipeError: the names are not exactly the layers.
        """
        names, given = [info.name for info in layers], self.sparsities
        for name, value in given.items():
            if name not in names:
                raise RecipeError(f"allocation names {name!r}, which is not a sparse layer. {suggest(name, names)}")
            if not 0.0 <= value <= 1.0:
                raise RecipeError(f"allocation[{name!r}] must be between 0 and 1; got {value}")
        if missing := [name for name in names if name not in given]:
            raise RecipeError(f"allocation must name every sparse layer; it lacks {', '.join(missing[:5])}")
        return AllocationResult({name: given[name] for name in names})

    def counts(self, layers: Sequence[LayerInfo], sparsity: float | None, scan: Scan) -> dict[str, int]:
        """Return how many weights each layer keeps; a ``sparsity`` must agree to one weight per layer.

        Raises:
            RecipeError: the names are not exactly the layers, or their total is not the target.
        """
        densities = self.densities(layers, 0.0, scan)
        total = sum(info.numel for info in layers)
        kept = math.fsum(densities[info.name] * info.numel for info in layers)
        if sparsity is not None and abs((1.0 - check_sparsity(sparsity)) * total - kept) > len(layers):
            raise RecipeError(
                f"allocation gives every layer a sparsity, {1 - kept / total:.7f} in all, but sparsity is "
                f"{sparsity:g}. Set sparsity to {1 - kept / total:.7f} or None"
            )
        return whole_counts({info.name: info.numel for info in layers}, densities)

"""Explicit: sparsities written into the recipe."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from lowdim.core.allocation.base import Allocation, AllocationResult, LayerInfo, Scan
from lowdim.core.errors import RecipeError


@dataclass(frozen=True)
class Explicit(Allocation):
    """Named layers get the sparsity given; all others share what is left of the budget equally.

    Args:
        map: regular expressions, searched for in the layers' names, to sparsities; the first that matches
            counts.

    Example:
        >>> layers = [LayerInfo("h.0.up", 0, 4, 4), LayerInfo("h.1.up", 1, 4, 4)]
        >>> Explicit({"h.0": 0.25}).allocate(layers, 0.5, lambda: iter([])).sparsities
        {'h.0.up': 0.25, 'h.1.up': 0.75}
    """

    fits_groups: ClassVar[bool] = True

    map: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        if not self.map:
            raise RecipeError(
                'allocation explicit needs map, from layers to sparsities, such as {"mlp": 0.7}'
            )
        for expression, value in self.map.items():
            if not 0.0 <= value <= 1.0:
                raise RecipeError(
                    f"map[{expression!r}] must be a share of zeros between 0 and 1; got {value}"
                )
            try:
                re.compile(expression)
            except re.error as error:
                raise RecipeError(f"map: {expression!r} is not a regular expression: {error}") from error

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
        for expression, value in self.map.items():
            found = [info.name for info in layers if re.search(expression, info.name)]
            if not found:
                raise RecipeError(
                    f"map: {expression!r} matches no layer; layers are named like {layers[0].name!r}"
                )
            for name in found:
                given.setdefault(name, value)
        return given

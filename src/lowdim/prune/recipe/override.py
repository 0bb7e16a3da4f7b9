"""Dotted overrides of a recipe of pruning, in which ``method`` stands for a score and a repair."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from lowdim.core.recipe import override as shared
from lowdim.prune.recipe import families
from lowdim.prune.recipe.schema import Recipe


def override(recipe: Mapping[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """Lay ``KEY=VALUE`` assignments over a recipe's mapping and return the new mapping.

    Raises:
        RecipeError: an assignment without ``=``, or a key that no recipe has; the nearest key is suggested.

    Example:
        >>> override({"sparsity": 0.5, "allocation": "owl"}, ["allocation.m=7", "seed=3"])
        {'sparsity': 0.5, 'allocation': {'name': 'owl', 'm': 7}, 'seed': 3}
    """
    result: dict[str, Any] = copy.deepcopy(dict(recipe))
    for key, value in shared.assignments(assignments):
        put(result, key, value)
    return result


def put(recipe: dict[str, Any], key: str, value: Any) -> None:
    """Set one dotted key of a recipe's mapping, in place.

    Raises:
        RecipeError: no recipe has this key; the nearest one is suggested.
    """
    if key == "method":
        for kind, name in families.expand(value).items():
            shared.put(Recipe, recipe, kind, name)
        recipe.pop("method", None)
    else:
        shared.put(Recipe, recipe, key, value)


def known_keys() -> list[str]:
    """Return every dotted key that a recipe can have, the settings of all methods included."""
    return ["method", *shared.known_keys(Recipe)]

"""Dotted overrides: ``allocation.m=5`` laid over a recipe that has been read but not yet checked."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from lowdim.core.errors import RecipeError
from lowdim.prune.recipe import families, messages, text
from lowdim.prune.recipe.schema import SECTIONS, Recipe


def override(recipe: Mapping[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """Lay ``KEY=VALUE`` assignments over a recipe's mapping and return the new mapping.

    A value is read as YAML: ``5`` is a number, ``null`` nothing, ``[a, b]`` a list. ``allocation=owl``
    chooses a method and keeps its settings if it was chosen already; ``allocation.m=5`` changes one setting.

    Raises:
        RecipeError: an assignment without ``=``, or a key that no recipe has; the nearest key is suggested.

    Example:
        >>> override({"sparsity": 0.5, "allocation": "owl"}, ["allocation.m=7", "seed=3"])
        {'sparsity': 0.5, 'allocation': {'name': 'owl', 'm': 7}, 'seed': 3}
    """
    result: dict[str, Any] = copy.deepcopy(dict(recipe))
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals:
            raise RecipeError(f"--set takes KEY=VALUE, got {assignment!r}. Write for example sparsity=0.6.")
        put(result, key.strip(), text.load(value))
    return result


def put(recipe: dict[str, Any], key: str, value: Any) -> None:
    """Set one dotted key of a recipe's mapping, in place.

    Raises:
        RecipeError: no recipe has this key; the nearest one is suggested.
    """
    if key not in known_keys():
        raise RecipeError(messages.unknown(key, known_keys()))
    section, dot, setting = key.partition(".")
    if key == "method":
        for kind, name in families.expand(value).items():
            _put_method(recipe, kind, "name", name)
        recipe.pop("method", None)
    elif section in families.KINDS:
        _put_method(recipe, section, setting, value)
    elif dot:
        recipe[section] = {**_mapping(recipe.get(section) or {}, section), setting: value}
    else:
        recipe[section] = value


def known_keys() -> list[str]:
    """Return every dotted key that a recipe can have, the settings of all methods included."""
    nested = [f"{section}.{field}" for section, model in SECTIONS.items() for field in model.model_fields]
    methods = [key for kind in families.KINDS for key in families.keys(kind)]
    return ["method", *Recipe.model_fields, *nested, *methods]


def _put_method(recipe: dict[str, Any], kind: str, setting: str, value: Any) -> None:
    current = recipe.get(kind, Recipe.model_fields[kind].default)
    current = {"name": current} if isinstance(current, str) else dict(_mapping(current, kind))
    if setting in ("", "name") and isinstance(value, str):
        recipe[kind] = current if current.get("name") == value else {"name": value}
    elif not setting:
        recipe[kind] = value
    else:
        recipe[kind] = {**current, setting: value}


def _mapping(value: object, section: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise RecipeError(f"{section} must be a mapping of settings, got {value!r}. See `lowdim methods`.")
    return value

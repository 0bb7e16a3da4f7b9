"""Dotted overrides: ``allocation.m=5`` laid over a recipe that has been read but not yet checked."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from lowdim.core.errors import RecipeError
from lowdim.core.recipe import families, messages, text

if TYPE_CHECKING:
    from lowdim.core.recipe.base import Document


def assignments(given: Iterable[str]) -> Iterable[tuple[str, Any]]:
    """Read ``KEY=VALUE`` assignments, each value as YAML: ``5`` is a number, ``null`` nothing, ``[a, b]`` a list.

    Example:
        >>> list(assignments(["allocation.m=7"]))
        [('allocation.m', 7)]
    """
    for assignment in given:
        key, equals, value = assignment.partition("=")
        if not equals:
            raise RecipeError(f"--set takes KEY=VALUE, got {assignment!r}. Write for example sparsity=0.6.")
        yield key.strip(), text.load(value)


def override(schema: type[Document], recipe: Mapping[str, Any], given: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Lay values over a recipe's mapping, by their dotted keys, and return the new mapping.

    Raises:
        RecipeError: a key that no such recipe has; the nearest key is suggested.
    """
    result: dict[str, Any] = copy.deepcopy(schema.spell_out(recipe))
    for key, value in given:
        put(schema, result, key, value)
    return result


def put(schema: type[Document], recipe: dict[str, Any], key: str, value: Any) -> None:
    """Set one dotted key of a recipe's mapping, in place.

    A method's name keeps its settings if it was chosen already; ``allocation.m`` changes one setting.
    """
    for free in schema.free:
        if key.startswith(f"{free}."):
            section, _, field = free.partition(".")
            held = _mapping({"name": given} if isinstance(given := recipe.get(section) or {}, str) else given, section)
            inner = {**_mapping(held.get(field) or {}, free), key.removeprefix(f"{free}."): value}
            recipe[section] = {**held, field: inner}
            return
    if key not in known_keys(schema):
        raise RecipeError(messages.unknown(key, known_keys(schema)))
    section, dot, setting = key.partition(".")
    if key in schema.aliases:
        for meant, item in schema.aliases[key](value).items():
            put(schema, recipe, meant, item)
    elif section in schema.kinds:
        _put_method(schema, recipe, section, setting, value)
    elif dot:
        current = recipe.get(section) or {}
        if isinstance(current, str) and f"{section}.name" in known_keys(schema):
            current = {"name": current}
        recipe[section] = {**_mapping(current, section), setting: value}
    else:
        recipe[section] = value


def known_keys(schema: type[Document]) -> list[str]:
    """Return every dotted key that a recipe can have, the settings of all methods included."""
    return [*schema.keys(), *(key for kind in schema.kinds for key in families.keys(kind))]


def _put_method(schema: type[Document], recipe: dict[str, Any], kind: str, setting: str, value: Any) -> None:
    fields = {field.alias or name: field for name, field in schema.model_fields.items()}
    current = recipe.get(kind, fields[kind].default)
    current = {} if current is None else current
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

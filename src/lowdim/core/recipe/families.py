"""The sections of a recipe that name a method, ``owl`` or ``{name: owl, m: 5}``, and what they stand for."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from typing import Any

from pydantic import PlainSerializer, PlainValidator, TypeAdapter, ValidationError

from lowdim.core import pattern, registry
from lowdim.core.errors import LowdimError, RecipeError
from lowdim.core.recipe import messages
from lowdim.core.settings import plain

ALIASES: dict[tuple[str, str], dict[str, str]] = {
    ("allocation", "pooling"): {"per-block": "block", "per-layer": "layer"}
}
"""Other spellings of a setting's values."""


def method_field(kind: str) -> tuple[PlainValidator, PlainSerializer]:
    """Return the annotations of a recipe's field that holds a method: ``Annotated[Any, *method_field("score")]``."""
    return (
        PlainValidator(lambda value: build(kind, value)),
        PlainSerializer(lambda method: describe(kind, method), return_type=dict[str, Any]),
    )


def build(kind: str, value: object) -> Any:
    """Return the settings object that a section of a recipe stands for.

    Args:
        kind: a family of the registry, such as "score".
        value: a name, a mapping with ``name`` and settings, or the object itself.

    Raises:
        RecipeError: unknown name or setting (the nearest is suggested), or a value of a wrong type or range.

    Example:
        >>> build("repair", {"name": "sparsegpt", "damping": 0.1})
        SparseGPT(damping=0.1, block=128)
    """
    if isinstance(value, str):
        value = {"name": value}
    if isinstance(value, Mapping):
        return _from_mapping(kind, dict(value))
    name = name_of(kind, value)
    if name is None:
        raise RecipeError(
            f"{kind} must be a name or a mapping with a name, got {reprlib.repr(value)}. "
            f"Choose one of: {', '.join(registry.names(kind))}."
        )
    return _typed(kind, name, type(value), _settings(value))


def describe(kind: str, method: object) -> dict[str, Any]:
    """Return the mapping that `build` turns back into the same settings, every default spelled out.

    Example:
        >>> describe("repair", build("repair", "sparsegpt"))
        {'name': 'sparsegpt', 'damping': 0.01, 'block': 128}
    """
    return {"name": name_of(kind, method), **_settings(method)}


def name_of(kind: str, method: object) -> str | None:
    """Return the registered name of a settings object, or None if it belongs to no method of this kind."""
    target = f"{type(method).__module__}:{type(method).__qualname__}"
    targets = {registry.find(kind, name).target: name for name in registry.names(kind)}
    return targets.get(target)


def keys(kind: str, name: str | None = None) -> list[str]:
    """Return the dotted keys of a family: of one method, or of all of them."""
    chosen = [name] if name else registry.names(kind)
    settings = dict.fromkeys(key for each in chosen for key in _class(kind, each)[1])
    return [f"{kind}.{key}" for key in ("name", *settings)]


def _class(kind: str, name: str) -> tuple[type[Any], dict[str, Any]]:
    """Return the class behind a name and the settings it implies; a pattern's name may be ``2:4``."""
    if kind == "pattern" and name not in registry.names(kind):
        method = pattern.parse(name)
        return type(method), _settings(method)
    cls = registry.find(kind, name).load()
    return cls, {field.name: field.default for field in fields(cls)}


def _from_mapping(kind: str, value: dict[str, Any]) -> Any:
    name = value.pop("name", None)
    if not isinstance(name, str):
        raise RecipeError(
            f"{kind}.name must be the name of a method, got {reprlib.repr(name)}. "
            f"Choose one of: {', '.join(registry.names(kind))}."
        )
    cls, implied = _class(kind, name)
    for key in value:
        if key not in implied:
            raise RecipeError(_unknown_setting(kind, name, str(key), list(implied)))
    given = {key: _alias(kind, key, item) for key, item in value.items()}
    if kind == "pattern" and name not in registry.names(kind):
        given = {**implied, **given}
    return _typed(kind, name, cls, given)


def _typed(kind: str, name: str, cls: type[Any], given: dict[str, Any]) -> Any:
    try:
        # Strict JSON is what a recipe means: 5 is a float too, but "5" is no number and true no count.
        return _adapter(cls).validate_json(json.dumps(given), strict=True)  # type: ignore[arg-type]
    except ValidationError as error:
        raise RecipeError(messages.explain(error, kind, keys(kind, name))) from error
    except LowdimError as error:
        raise RecipeError(f"{kind} {name!r}: {error}") from error
    except TypeError as error:
        raise RecipeError(
            f"{kind} {name!r} takes numbers, text, lists and mappings, got {reprlib.repr(given)}."
        ) from error


@cache
def _adapter(cls: type[Any]) -> TypeAdapter[Any]:
    """Return what checks a method's settings, which is slow to build."""
    return TypeAdapter(cls)


def _unknown_setting(kind: str, name: str, key: str, known: list[str]) -> str:
    owners = [other for other in registry.names(kind) if key in _class(kind, other)[1]]
    if owners:
        return (
            f"{kind}.{key} is a setting of {' and '.join(owners)}, but {kind} is {name!r}. "
            f"Choose {kind}: {owners[0]}, or leave {kind}.{key} out."
        )
    if not known:
        return f"{kind}.{key} is unknown: {kind} {name!r} has no settings. Leave it out."
    return messages.unknown(f"{kind}.{key}", [f"{kind}.{option}" for option in known])


def _alias(kind: str, key: str, item: Any) -> Any:
    return ALIASES.get((kind, key), {}).get(item, item) if isinstance(item, str) else item


def _settings(method: Any) -> dict[str, Any]:
    return {field.name: plain(getattr(method, field.name)) for field in fields(method)}

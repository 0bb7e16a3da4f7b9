"""What a run is made from; one that is to be resumed must be made from the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lowdim.core.errors import LowdimError
from lowdim.core.machine import installed


class ResumeError(LowdimError):
    """The run that is to be resumed was made from another recipe, model or data."""


def versions() -> dict[str, str]:
    """Return the versions of the libraries that decide a result's bytes.

    Example:
        >>> list(versions())
        ['lowdim', 'torch', 'transformers']
    """
    return {name: installed(name) for name in ("lowdim", "torch", "transformers")}


def goes_on(state: Mapping[str, Any], fingerprint: Mapping[str, Any], where: Path) -> bool:
    """Tell whether a state belongs to an earlier attempt at this run; an empty one does not.

    Raises:
        ResumeError: it is that of another run; the first fields that differ are named.
    """
    found = state.get("fingerprint")
    if found is not None:
        refuse_differences(f"the unfinished run in {where}", found, fingerprint)
    return found is not None


def refuse_differences(what: str, found: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Refuse to go on with a run of another fingerprint."""
    fields = differences(found, asked)
    if fields:
        raise ResumeError(
            f"cannot resume: {what} differs in {', '.join(fields[:5])}. Repeat its command exactly, give another "
            "output, or remove this one, if need be by overwriting it."
        )


def differences(one: Any, other: Any, prefix: str = "") -> list[str]:
    """Return the dotted keys at which two nested mappings differ.

    Example:
        >>> differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}, "d": 4})
        ['a.c', 'd']
    """
    if not (isinstance(one, Mapping) and isinstance(other, Mapping)):
        return [] if one == other else [prefix]
    missing = object()
    return [
        key
        for name in dict.fromkeys([*one, *other])
        for key in differences(one.get(name, missing), other.get(name, missing), f"{prefix}.{name}".lstrip("."))
    ]

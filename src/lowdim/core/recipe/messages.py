"""Turns what pydantic found into sentences that name the key, the rule, the value and the remedy."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from lowdim.core.errors import LowdimError, suggest

SHOWN = 5


def unknown(path: str, options: Iterable[str]) -> str:
    """Return the sentence for a key that does not exist.

    The last part of a key is enough to find it: ``samples`` suggests ``calibration.samples``.

    Example:
        >>> unknown("allocation.n", ["allocation.m", "allocation.lam"])
        "unknown key 'allocation.n'. Did you mean 'allocation.m'?"
        >>> unknown("samples", ["calibration.samples", "seed"])
        "unknown key 'samples'. Did you mean 'calibration.samples'?"
    """
    keys = list(options)
    last = path.rpartition(".")[2]
    same = [key for key in keys if key.rpartition(".")[2] == last]
    near = f"Did you mean {same[0]!r}?" if same else suggest(path, keys)
    return f"unknown key {path!r}. {near}"


def explain(error: ValidationError, prefix: str, keys: Iterable[str]) -> str:
    """Return one paragraph for all that is wrong, the first few findings in full."""
    found = [_sentence(detail, prefix, list(keys)) for detail in error.errors()]
    more = f" (and {len(found) - SHOWN} more)" if len(found) > SHOWN else ""
    return "\n".join(dict.fromkeys(found[:SHOWN])) + more


def _sentence(detail: ErrorDetails, prefix: str, keys: Sequence[str]) -> str:
    path = ".".join(str(part) for part in (prefix, *detail["loc"]) if part != "")
    context: dict[str, Any] = detail.get("ctx", {})
    cause = context.get("error")
    if isinstance(cause, LowdimError):
        return _caused(path, str(cause), keys)
    if detail["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return unknown(path, keys)
    if detail["type"] in ("missing", "missing_argument"):
        return f"{path} is required. Add it to the recipe, or --set {path}=VALUE."
    rule = re.sub(r"^(Value error, )?\w+ should", "must", detail["msg"])
    if detail["type"] == "model_type":
        rule = "must be a mapping of settings"
    return f"{path} {rule}, got {reprlib.repr(detail['input'])}.{_near(detail, context)}"


def _near(detail: ErrorDetails, context: dict[str, Any]) -> str:
    expected = context.get("expected")
    if detail["type"] != "literal_error" or not isinstance(detail["input"], str) or not expected:
        return ""
    options = str(expected).replace(" or ", ", ").replace("'", "").split(", ")
    hint = suggest(detail["input"], options)
    return f" {hint}" if hint.startswith("Did") else ""


def _caused(path: str, message: str, keys: Sequence[str]) -> str:
    """Add the name of the section to a message that was written without knowing it."""
    if path and f"{path}.{re.split('[ =]', message, maxsplit=1)[0]}" in keys:
        return f"{path}.{message}"
    return message if path in message else f"{path}: {message}"

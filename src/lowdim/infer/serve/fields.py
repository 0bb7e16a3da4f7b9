"""Fields of the OpenAI protocol beyond those that are served: harmless, neutral, or refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic_core import PydanticCustomError

from lowdim.core.errors import suggest

HARMLESS = frozenset(
    {
        "user",
        "metadata",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "parallel_tool_calls",
    }
)
"""Accepted and of no effect: they label a request, or matter only with tools."""

NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("none",),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "moderation": (),
    "prediction": (),
    "presence_penalty": (0,),
    "prompt_cache_options": (),
    "reasoning_effort": (),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "verbosity": (),
    "web_search_options": (),
}
"""Not supported; accepted where the value asks for nothing (``null`` never does)."""

IN_MESSAGES: Mapping[str, tuple[Any, ...]] = dict.fromkeys(
    ("annotations", "audio", "function_call", "reasoning_content", "refusal", "tool_call_id", "tool_calls"), ()
)
"""The same of a message."""


def keep_served(
    data: Any,
    served: frozenset[str],
    harmless: frozenset[str] = HARMLESS,
    neutral: Mapping[str, tuple[Any, ...]] = NEUTRAL,
) -> Any:
    """Drop from an object of a body what is harmless or asks for nothing.

    Args:
        data: decoded; anything but an object is left to the schema.
        served: the fields that are known.
        harmless: those that change nothing.
        neutral: the values of others that ask for nothing.

    Raises:
        PydanticCustomError: a field asks for what is not supported, or no such field exists.

    Example:
        >>> keep_served({"model": "m", "user": "ann", "logprobs": False}, frozenset({"model"}))
        {'model': 'm'}
    """
    if not isinstance(data, dict):
        return data
    for name in data.keys() - served - harmless:
        _check(name, data[name], served, neutral)
    return {name: value for name, value in data.items() if name in served}


def _check(name: str, value: Any, served: frozenset[str], neutral: Mapping[str, tuple[Any, ...]]) -> None:
    if name not in neutral:
        name = name.encode(errors="backslashreplace").decode()  # half a surrogate pair could not be sent back
        raise PydanticCustomError(
            "unknown_parameter",
            "{param} is not a field that belongs here. {hint}",
            {"param": name, "hint": suggest(name, served)},
        )
    if value is None or any(_same(value, nothing) for nothing in neutral[name]):
        return
    raise PydanticCustomError(
        "unsupported_parameter", "{param} is not supported by this server. Leave it out.", {"param": name}
    )


def _same(value: Any, neutral: Any) -> bool:
    """Compare, telling ``False`` from ``0``: a count of 0 log-probabilities still asks for some."""
    return bool(value == neutral) and isinstance(value, bool) == isinstance(neutral, bool)

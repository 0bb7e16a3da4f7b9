"""Patterns: which weights are one unit, and which masks are legal."""

from __future__ import annotations

import re

from lowdim.core.errors import RecipeError, suggest
from lowdim.core.pattern.base import Pattern
from lowdim.core.pattern.block import Block
from lowdim.core.pattern.fan_in import FanIn
from lowdim.core.pattern.gates import Gates
from lowdim.core.pattern.nm import NM
from lowdim.core.pattern.roles import BlockRoles
from lowdim.core.pattern.structured import Structured, structured_masks
from lowdim.core.pattern.unstructured import Unstructured
from lowdim.core.registry import register

__all__ = [
    "NM",
    "Block",
    "BlockRoles",
    "FanIn",
    "Gates",
    "Pattern",
    "Structured",
    "Unstructured",
    "parse",
    "structured_masks",
]

_HERE = "lowdim.core.pattern"
register("pattern", "unstructured", f"{_HERE}.unstructured:Unstructured", title="Single weights")
register(
    "pattern",
    "nm",
    f"{_HERE}.nm:NM",
    title="Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch",
    arxiv="2102.04010",
    year=2021,
)
register(
    "pattern",
    "block",
    f"{_HERE}.block:Block",
    title="Block-Sparse Recurrent Neural Networks",
    arxiv="1711.02782",
    year=2017,
)
register(
    "pattern",
    "fan-in",
    f"{_HERE}.fan_in:FanIn",
    title="Dynamic Sparse Training with Structured Sparsity",
    arxiv="2305.02299",
    year=2024,
)
register("pattern", "gates", f"{_HERE}.gates:Gates", title="Gates of recurrent layers")
register(
    "pattern",
    "structured",
    f"{_HERE}.structured:Structured",
    title="LLM-Pruner: On the Structural Pruning of Large Language Models",
    arxiv="2305.11627",
    year=2023,
)


def parse(text: str | Pattern) -> Pattern:
    """Read a pattern as it is written in a recipe; a pattern itself comes back as it is.

    Args:
        text: "unstructured", "structured", "fan-in" (every output keeps as many inputs), N:M such as "2:4" (keep 2 of
            every 4), ROWSxCOLS ("1x16"), or "gates:4" (the rows in four stacked parts that keep as many weights).

    Raises:
        RecipeError: the text is none of these, or its numbers are impossible.

    Example:
        >>> parse("2:4")
        NM(keep=2, group=4)
        >>> parse("16x8")
        Block(rows=16, cols=8)
    """
    if isinstance(text, Pattern):
        return text
    word = text.strip().lower()
    if word == "unstructured":
        return Unstructured()
    if word == "structured":
        return Structured()
    if word == "fan-in":
        return FanIn()
    if found := re.fullmatch(r"gates:(\d+)", word):
        return Gates(int(found[1]))
    if found := re.fullmatch(r"(\d+):(\d+)", word):
        return NM(int(found[1]), int(found[2]))
    if found := re.fullmatch(r"(\d+)x(\d+)", word):
        return Block(int(found[1]), int(found[2]))
    if ":" in word:
        raise RecipeError(
            f"pattern {text!r} is not N:M: write two whole numbers, those kept and the group, such as 2:4"
        )
    if re.fullmatch(r"\d*x\d*", word):
        raise RecipeError(f"pattern {text!r} is not ROWSxCOLS: write two whole numbers, such as 16x16")
    known = ["unstructured", "structured", "fan-in", "2:4", "1x16", "gates:4"]
    raise RecipeError(f"unknown pattern {text!r}. {suggest(word, known)}")

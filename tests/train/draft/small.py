"""Tiny trainings of drafts: a target of three blocks that has learnt its text, and a handful of steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.train.pretrain import small

from lowdim.train.draft.api import DraftingResult, distill_draft
from lowdim.train.draft.recipe import Drafting

MODEL = {**small.MODEL, "num_hidden_layers": 3}


def target(text: Path, out: Path) -> Path:
    return small.run(text, out, model=MODEL, steps=30).out


def recipe(text: Path | str, base: Path | str, **settings: Any) -> Drafting:
    given: dict[str, Any] = {
        "target": str(base),
        "draft": "target:1",
        "data": {"source": str(text), "validation": 0.2},
        "steps": 6,
        "length": 16,
        "batch": 6,
        "optimizer": {"name": "adamw", "lr": 1e-2},
        "acceptance": {"sequences": 6, "prompts": 3, "prompt": 4, "tokens": 6, "drafted": 2},
        "device": "cpu",
    }
    for key, value in settings.items():
        both = isinstance(value, dict) and isinstance(given.get(key), dict)
        given[key] = {**given[key], **value} if both else value
    return Drafting(**given)


def run(text: Path | str, base: Path | str, out: Path, **settings: Any) -> DraftingResult:
    return distill_draft(recipe(text, base, **settings), out=out)

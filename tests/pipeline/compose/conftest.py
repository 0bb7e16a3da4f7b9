"""A tiny model that reads characters, a text, and facts short enough to be learnt by it in a moment."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.cli.conftest import model as model
from tests.cli.conftest import text as text

from lowdim.models.disk.checkpoint import Checkpoint
from lowdim.pipeline.compose.api import compose
from lowdim.pipeline.compose.recipe import Composition

Made = Callable[..., dict[str, Any]]
TAUGHT = (
    {"prompt": "ab", "target": "c", "paraphrases": ["b"], "locality": ["xy", "z"]},
    {"prompt": "q", "target": "r"},
)


@pytest.fixture(scope="session")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Write facts to a file and return its path."""

    def write(*records: dict[str, Any]) -> str:
        path = tmp_path_factory.mktemp("facts") / "facts.jsonl"
        path.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
        return str(path)

    return write


@pytest.fixture(scope="session")
def taught(facts: Callable[..., str]) -> str:
    """A file of two facts."""
    return facts(*TAUGHT)


@pytest.fixture
def composed(model: Path, text: Path, tmp_path: Path) -> Made:
    """Compose stages on the tiny model, with little to measure."""

    def run(*stages: Any, out: str = "out", on: Path = model, **options: Any) -> dict[str, Any]:
        given = {key: options.pop(key) for key in ("keep", "resume", "announce") if key in options}
        evaluation = {"text": str(text), "windows": 2, "context": 32}
        recipe = Composition(stages=list(stages), **{"evaluation": evaluation, **options})
        return compose(on, recipe, out=tmp_path / out, **given)

    return run


def weights(place: Path) -> dict[str, torch.Tensor]:
    """Return every tensor of a model on disk."""
    return dict(Checkpoint(place))


def equal(one: Path, other: Path) -> bool:
    """Whether two models have the same weights, bit by bit."""
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def row(found: dict[str, Any], measure: str) -> dict[str, Any]:
    """Return a row of the table."""
    return next(row for row in found["table"] if row["measure"] == measure)

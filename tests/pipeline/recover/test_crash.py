"""A recovery killed at any moment and resumed ends in the bytes of an undisturbed one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.prune.test_crash import check, crash
from tests.turns import turns

BRIEF: dict[str, Any] = {"blocks": {"passes": 1}, "distill": {"passes": 2}, "save_seconds": 0.0}
STAGES: dict[str, dict[str, Any]] = {
    "both": BRIEF,
    "moving masks": {**BRIEF, "stage": "distill", "masks": {"name": "ast", "every": 2}},
    "rounded": {**BRIEF, "quantize": "int8"},
    "diverged": {**BRIEF, "stage": "distill", "lost_in": 5},
}
DENSE = {**BRIEF, "quantize": "int4"}


@pytest.mark.parametrize("name", turns(list(STAGES), of=4))
def test_killed_at_some_points(name: str, pruned: Callable[..., Path], tmp_path: Path) -> None:
    first = list(STAGES).index(name)
    check(crash(pruned("llama"), tmp_path, STAGES[name], (2 * first, 27), None, "recover"), replaced=False)


@pytest.mark.nightly
def test_a_dense_model_killed_while_it_is_rounded(saved: Callable[[str], Path], tmp_path: Path) -> None:
    settings = {**DENSE, "teacher": str(saved("llama"))}
    check(crash(saved("llama"), tmp_path, settings, (3, 37), None, "recover"), replaced=False)


@pytest.mark.nightly
@pytest.mark.parametrize("name", STAGES)
def test_killed_at_every_point(name: str, pruned: Callable[..., Path], tmp_path: Path) -> None:
    check(crash(pruned("llama"), tmp_path, STAGES[name], (0, 1), None, "recover"), replaced=False)

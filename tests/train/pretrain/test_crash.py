"""A pre-training killed at any moment and resumed ends in the bytes and the losses of an undisturbed one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.prune.test_crash import check, crash

BRIEF: dict[str, Any] = {"steps": 4, "save_seconds": 0.0, "evaluation": {"every": 2}, "keep": 2}


def test_killed_at_some_points(text: Path, tmp_path: Path) -> None:
    check(crash(text, tmp_path, BRIEF, (4, 23), None, "pretrain"), replaced=False)


@pytest.mark.slow
def test_killed_while_shards_are_saved(text: Path, tmp_path: Path) -> None:
    check(crash(text, tmp_path, BRIEF | {"parallel": "fsdp"}, (9, 17), None, "pretrain"), replaced=False)


@pytest.mark.nightly
@pytest.mark.parametrize("settings", [{}, {"optimizer": {"name": "muon"}, "precision": "bfloat16"}], ids=str)
def test_killed_at_every_point(settings: dict[str, Any], text: Path, tmp_path: Path) -> None:
    check(crash(text, tmp_path, BRIEF | settings, (0, 1), None, "pretrain"), replaced=False)

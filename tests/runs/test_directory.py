"""What a killed run leaves beside its output, and in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from lowdim.runs.directory import tidy
from lowdim.runs.lock import LOCK, DirectoryLock, OutputError


def test_a_lock_that_a_killed_run_left_in_its_output_is_removed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_text("{}")
    (out / LOCK).write_text("1\n")
    tidy(out)
    assert [file.name for file in out.iterdir()] == ["config.json"]


def test_one_that_is_held_is_not(tmp_path: Path) -> None:
    lock = DirectoryLock(tmp_path / "out")
    with pytest.raises(OutputError, match="is being written by another process"):
        tidy(tmp_path / "out")
    lock.release(tmp_path / "out")
    tidy(tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())

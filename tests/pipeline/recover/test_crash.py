"""A recovery that is killed, or runs out of disk, at any moment and is resumed ends in an undisturbed one's bytes."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.pipeline.recover import small
from tests.prune import tiny
from tests.prune.test_crash import check, crash
from tests.turns import turns

from lowdim.pipeline.recover.api import recover
from lowdim.runs.lock import OutputError

BRIEF: dict[str, Any] = {"blocks": {"passes": 1}, "distill": {"passes": 2}, "save_seconds": 0.0}
STAGES: dict[str, dict[str, Any]] = {
    "both": BRIEF,
    "moving masks": {**BRIEF, "stage": "distill", "masks": {"name": "ast", "every": 2, "slorb": 4}},
    "rounded": {**BRIEF, "quantize": "int8"},
    "diverged": {**BRIEF, "stage": "distill", "lost_in": 5},
}
DENSE = {**BRIEF, "quantize": "int4"}


@pytest.mark.parametrize("name", turns(list(STAGES), of=4))
def test_killed_at_some_points(name: str, pruned: Callable[..., Path], tmp_path: Path) -> None:
    first = list(STAGES).index(name)
    check(crash(pruned("llama"), tmp_path, STAGES[name], (2 * first, 37), None, "recover"), replaced=False)


@pytest.mark.nightly
def test_a_dense_model_killed_while_it_is_rounded(saved: Callable[[str], Path], tmp_path: Path) -> None:
    settings = {**DENSE, "teacher": str(saved("llama"))}
    check(crash(saved("llama"), tmp_path, settings, (3, 37), None, "recover"), replaced=False)


@pytest.mark.nightly
@pytest.mark.parametrize("name", STAGES)
def test_killed_at_every_point(name: str, pruned: Callable[..., Path], tmp_path: Path) -> None:
    check(crash(pruned("llama"), tmp_path, STAGES[name], (0, 1), None, "recover"), replaced=False)


@pytest.mark.parametrize("name", turns(["both", "moving masks", "rounded"], of=3))
def test_a_disk_that_is_full_again_and_again(
    name: str, pruned: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a block of either stage, a state, the one at the end, what is gathered from the shards, and the record."""
    out, real = tmp_path / "out", os.fsync
    whole = small.run(pruned("llama"), tmp_path / "whole", **STAGES[name]).out
    parts = ["-00003-of-00004.", ".distill-latest", ".distill-end", "-00002-of-00004.", ".final", "lowdim.json"]
    for part in parts[STAGES[name].get("stage") == "distill" :]:

        def fsync(file: int, part: str = part) -> None:
            if part in os.readlink(f"/proc/self/fd/{file}"):
                raise OSError(errno.ENOSPC, "No space left on device")
            real(file)

        monkeypatch.setattr(os, "fsync", fsync)
        with pytest.raises(OutputError, match=r"No space left on device\. What is finished stays in .*resume"):
            recover(pruned("llama"), small.recipe(**STAGES[name]), out=out, calibration=small.TEXT, resume=True)
        assert list(tmp_path.rglob("*.tmp")) == [] and not out.exists()
        monkeypatch.undo()
    recover(pruned("llama"), small.recipe(**STAGES[name]), out=out, calibration=small.TEXT, resume=True)
    assert tiny.digest(out) == tiny.digest(whole)

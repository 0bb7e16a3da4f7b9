"""What a killed run leaves beside its output, and in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from lowdim.runs.directory import Directory, tidy
from lowdim.runs.lock import LOCK, DirectoryLock, OutputError


def test_a_lock_that_a_killed_run_left_in_its_output_is_removed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_text("{}")
    (out / LOCK).write_text("1\n")
    tidy(out)
    assert [file.name for file in out.iterdir()] == ["config.json"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_mount_point_is_refused_before_any_work(
    tmp_path: Path, overwrite: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.setattr("os.path.ismount", lambda path: Path(path) == out)
    with pytest.raises(OutputError, match=r"out is a mount point, .* Give .*out/model"):
        Directory(out, overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    Directory(out / "model").close()


def test_what_fails_behind_a_result_that_has_appeared_is_not_hidden(tmp_path: Path) -> None:
    with Directory(tmp_path / "out") as directory:
        directory.write_text("config.json", "{}")
        directory.finish()
        directory.reset()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["config.json"]


def test_one_that_is_held_is_not(tmp_path: Path) -> None:
    lock = DirectoryLock(tmp_path / "out")
    with pytest.raises(OutputError, match="is being written by another process"):
        tidy(tmp_path / "out")
    lock.release(tmp_path / "out")
    tidy(tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())

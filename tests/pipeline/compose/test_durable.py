"""A composition that is killed goes on, with what is finished left alone."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from tests.pipeline.compose.conftest import Made, equal
from tests.turns import turns

from lowdim.core.errors import LowdimError
from lowdim.pipeline.compose import chain
from lowdim.pipeline.compose.measure import Asked
from lowdim.pipeline.compose.stages.edit import Edit
from lowdim.pipeline.compose.stages.prune import Prune
from lowdim.runs.fingerprint import ResumeError

PRUNE = {"prune": {"sparsity": 0.5, "method": "magnitude"}}


class Killed(Exception):
    pass


def digest(place: Path) -> dict[str, str]:
    return {str(path.relative_to(place)): hashlib.sha256(path.read_bytes()).hexdigest() for path in place.rglob("*.*")}


@pytest.mark.parametrize("where", turns([0, 1], of=2))
def test_a_killed_composition_goes_on_to_the_same_weights(
    composed: Made, taught: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: int
) -> None:
    edit = {"edit": {"edits": taught, "lr": 0.01, "steps": 3}}
    given = digest(model)
    whole = composed(PRUNE, edit, orders="both", out="whole")
    runs: list[str] = []
    first, second = Prune.run, Edit.run

    def pruning(self: Any, work: Any) -> Any:
        runs.append("prune")
        return first(self, work)

    def editing(self: Any, work: Any) -> Any:
        runs.append("edit")
        if runs.count("edit") == where + 1 and "killed" not in runs:
            runs.append("killed")
            raise Killed
        return second(self, work)

    monkeypatch.setattr(Prune, "run", pruning)
    monkeypatch.setattr(Edit, "run", editing)
    with pytest.raises(Killed):
        composed(PRUNE, edit, orders="both")
    assert not (tmp_path / "out").exists()
    runs.remove("killed")
    runs.append("killed")
    found = composed(PRUNE, edit, orders="both", resume=True)
    assert runs.count("prune") == 2 and runs.count("edit") == 3  # only the one that was killed is done again
    assert found["table"] == whole["table"]
    for name in ("model", "reversed"):
        assert equal(tmp_path / "out" / name, tmp_path / "whole" / name)
    assert digest(model) == given  # what the user gave is as it was


def test_a_finished_one_is_returned_and_another_is_refused(composed: Made, tmp_path: Path) -> None:
    found = composed(PRUNE)
    assert composed(PRUNE, resume=True) == found
    with pytest.raises(ResumeError, match="differs in recipe"):
        composed({"prune": {"sparsity": 0.6, "method": "magnitude"}}, resume=True)
    with pytest.raises(LowdimError, match="exists and is not empty"):
        composed(PRUNE)


def test_another_text_of_the_same_name_is_refused(composed: Made, text: Path, tmp_path: Path) -> None:
    file = tmp_path / "own.txt"
    file.write_text(text.read_text())
    evaluation = {"text": str(file), "windows": 2, "context": 32}
    found = composed(PRUNE, evaluation=evaluation)
    assert composed(PRUNE, evaluation=evaluation, resume=True) == found
    file.write_text(text.read_text()[1:])
    with pytest.raises(ResumeError, match=r"differs in evaluation\.text"):
        composed(PRUNE, evaluation=evaluation, resume=True)


def test_one_model_stays_unless_all_are_kept(composed: Made, tmp_path: Path) -> None:
    composed(PRUNE, "round")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["compose.json", "model"]
    composed(PRUNE, "round", out="kept", keep=True)
    kept = {path.name for path in (tmp_path / "kept").iterdir() if path.is_dir()}
    assert kept == {"model", "model.1-prune", "model.2-round"}
    assert equal(tmp_path / "kept/model", tmp_path / "out/model")


@pytest.mark.parametrize("where", turns(["rewrite", "measure"], of=2))
def test_what_was_broken_is_still_told_by_the_attempt_that_goes_on(
    composed: Made, taught: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Killed while a broken model was put right, or behind that: the count stays, and so does the mask."""
    stages = (PRUNE, {"edit": {"edits": taught, "lr": 0.01, "steps": 2, "masked": False}})
    whole = composed(*stages, out="whole")
    home, name = (chain, "rewrite") if where == "rewrite" else (Asked, "again")
    real, calls = getattr(home, name), []

    def killed(*arguments: Any, **options: Any) -> Any:
        calls.append(name)
        if len(calls) == (1 if where == "rewrite" else 2):
            raise Killed
        return real(*arguments, **options)

    monkeypatch.setattr(home, name, killed)
    with pytest.raises(Killed):
        composed(*stages)
    found = composed(*stages, resume=True)
    assert found["stages"]["model"][1]["broken"] == whole["stages"]["model"][1]["broken"] != []
    assert equal(tmp_path / "out/model", tmp_path / "whole/model")

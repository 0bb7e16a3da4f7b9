"""The log as event files: every number once, whatever was killed in between."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.train.pretrain import small

from lowdim.train.pretrain.api import pretrain
from lowdim.train.pretrain.log import Log
from lowdim.train.pretrain.run import Run

accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of tensorboard's own modules

SETTINGS = {"tensorboard": True, "evaluation": {"every": 2}, "save_seconds": 0}


def points(out: Path) -> dict[str, list[tuple[int, float]]]:
    """Return what TensorBoard shows of a run: (step, value) by name."""
    found = accumulators.EventAccumulator(str(out.with_name(f"{out.name}.tensorboard")))
    found.Reload()
    return {name: [(event.step, event.value) for event in found.Scalars(name)] for name in found.Tags()["scalars"]}


def logged(out: Path, key: str) -> list[tuple[int, float]]:
    lines = out.with_name(f"{out.name}.log.jsonl").read_text().splitlines()
    return [(line["step"], line[key]) for line in map(json.loads, lines) if key in line]


def test_event_files_say_what_the_log_says(text: Path, tmp_path: Path) -> None:
    out = small.run(text, tmp_path / "out", **SETTINGS).out
    found = points(out)
    told = {"loss", "lr", "norm", "tokens", "tokens_per_s", "mfu", "peak_bytes", "eta_s"}
    assert set(found) == told | {"validation_loss"}
    assert all(0 < value < 1 for _, value in logged(out, "mfu"))
    peaks = [value for _, value in logged(out, "peak_bytes")]
    assert peaks == sorted(peaks) and peaks[0] > 1 << 20
    for key, shown in found.items():
        assert [step for step, _ in shown] == [step for step, _ in logged(out, key)], key
        assert [value for _, value in shown] == pytest.approx([value for _, value in logged(out, key)], rel=1e-6), key


def test_a_run_that_goes_on_doubles_no_point_and_loses_none(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at step 5, with nobody to close the event file, it goes on from step 2."""
    recipe, out = small.recipe(text, **SETTINGS), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(Run, "_due", lambda self, _: self.loop.step == 2)
        patch.setattr(Log, "__exit__", lambda log, *_: log._file.close())
        small.interrupt(lambda: pretrain(recipe, out=out), 5, monkeypatch)
    assert [step for step, _ in points(out)["loss"]] == [1, 2, 3, 4]
    pretrain(recipe, out=out, resume=True)
    found = points(out)
    assert [step for step, _ in found["loss"]] == [1, 2, 3, 4, 5, 6]
    assert [step for step, _ in found["validation_loss"]] == [2, 4, 6]
    assert len(list((tmp_path / "out.tensorboard").iterdir())) == 2


def test_a_run_that_begins_anew_shows_nothing_of_the_first_attempt(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing was saved of it."""
    recipe, out = small.recipe(text, **{**SETTINGS, "save_seconds": 1e6}), tmp_path / "out"
    small.interrupt(lambda: pretrain(recipe, out=out), 5, monkeypatch)
    pretrain(recipe, out=out, resume=True)
    assert [step for step, _ in points(out)["loss"]] == [1, 2, 3, 4, 5, 6]
    assert len(list((tmp_path / "out.tensorboard").iterdir())) == 1


def test_a_run_in_the_place_of_another_shows_nothing_of_it(text: Path, tmp_path: Path) -> None:
    small.run(text, tmp_path / "out", **SETTINGS)
    pretrain(small.recipe(text, **{**SETTINGS, "steps": 3}), out=tmp_path / "out", overwrite=True)
    assert [step for step, _ in points(tmp_path / "out")["loss"]] == [1, 2, 3]

"""Sweeps of a made-up command: run, found again, killed, restarted, failed; and the table."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.pipeline.sweep.made import COMMAND, PROGRAM

from lowdim.core.errors import LowdimError, RecipeError
from lowdim.pipeline.sweep import execute
from lowdim.pipeline.sweep.api import Sweep
from lowdim.pipeline.sweep.command import Command
from lowdim.pipeline.sweep.numbers import numbers
from lowdim.pipeline.sweep.recipe import SweepRecipe
from lowdim.runs.lock import DirectoryLock


@pytest.fixture(autouse=True)
def _program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execute, "PROGRAM", PROGRAM)


def made(out: Path, grid: Any, **values: Any) -> Sweep:
    return Sweep(SweepRecipe(command="fake", grid=grid, **values), COMMAND, out)


def calls(out: Path) -> dict[str, list[str]]:
    """Return what each run's log says of its attempts."""
    logs = {path.parent.name: path.read_text() for path in out.glob("*/log.txt")}
    return {name: [line for line in log.splitlines() if line.startswith("called")] for name, log in logs.items()}


def test_all_runs_are_run_and_averaged_over_seeds(tmp_path: Path) -> None:
    said: list[str] = []
    sweep = made(tmp_path / "new" / "out", {"lr": [1, 2], "--seed": [0, 1, 2]})
    assert sweep.run(jobs=3, announce=said.append)
    assert said[0] == "6 runs of lowdim fake, 0 finished, 6 to run, 3 at a time."
    assert sum("From the first: 5 runs of about" in line for line in said) == 1
    assert all(len(lines) == 1 for lines in calls(sweep.out).values())
    found = sweep.sheet()
    assert found.axes == ["lr"]
    assert found.names == ["score", "peak_bytes"]  # what is the same everywhere says nothing
    assert [row.axes for row in found.rows] == [{"lr": 1}, {"lr": 2}]
    for row in found.rows:
        assert row.state == "3"
        assert (row.mean("score"), row.spread("score")) == (11, 1)
        assert row.mean("peak_bytes") == 100
    rows = list(csv.DictReader((sweep.out / "table.csv").read_text().splitlines()))
    assert rows[1] == {
        "lr": "2",
        "runs": "3",
        "score": "11.0",
        "score (sd)": "1.0",
        "peak_bytes": "100.0",
        "peak_bytes (sd)": "100.0",
    }
    whole = json.loads((sweep.out / "sweep.json").read_text())
    assert [run["state"] for run in whole["runs"]] == ["finished"] * 6
    assert whole["table"][0]["mean"] == {"score": 11, "peak_bytes": 100}


def test_what_is_finished_is_not_run_again_and_a_grid_can_grow(tmp_path: Path) -> None:
    made(tmp_path, {"--seed": [0, 1]}).run()
    said: list[str] = []
    assert made(tmp_path, {"--seed": [0, 1]}).run(announce=said.append)
    assert said == ["2 runs of lowdim fake, 2 finished, 0 to run, 1 at a time."]
    assert made(tmp_path, {"--seed": [0, 1, 2]}).run(announce=said.append)
    assert {name: len(lines) for name, lines in calls(tmp_path).items()} == {"seed=0": 1, "seed=1": 1, "seed=2": 1}
    assert "From 2 finished before: 1 run of about" in said[2]


def test_a_run_that_fails_or_diverges_is_said_so_and_stops_no_other(tmp_path: Path) -> None:
    grid = {"mode": ["fail", "diverge", "infinite", "ok"], "--seed": [0, 1]}
    said: list[str] = []
    assert not made(tmp_path, grid).run(jobs=2, announce=said.append)
    found = made(tmp_path, grid).sheet()
    states = {row.axes["mode"]: row.state for row in found.rows}
    ends = {"fail": "0 of 2, 2 failed", "diverge": "0 of 2, 2 diverged", "infinite": "0 of 2, 2 diverged", "ok": "2"}
    assert states == ends
    errors = {row.axes["mode"]: row.errors for row in found.rows}
    assert errors["fail"] == ["it broke. Mend it."]
    assert errors["diverge"] == ["the loss of step 7 is NaN, the norm of the gradient 1e9."]
    assert errors["infinite"] == ["test.loss is inf"]
    assert any("mode=fail,seed=0: failed after" in line and "it broke" in line for line in said)
    assert found.rows[3].mean("score") == 10.5
    json.loads((tmp_path / "sweep.json").read_text())


def test_what_failed_is_tried_again(tmp_path: Path) -> None:
    grid = {"mode": ["fail", "ok"]}
    made(tmp_path, grid).run()
    assert not made(tmp_path, grid).run()
    assert {name: len(lines) for name, lines in calls(tmp_path).items()} == {"mode=fail": 2, "mode=ok": 1}
    assert ["--resume" in line for line in calls(tmp_path)["mode=fail"]] == [False, True]


def test_one_run_of_the_grid_by_number(tmp_path: Path) -> None:
    grid = {"mode": ["fail", "ok"], "--seed": [0, 1]}
    assert made(tmp_path, grid).run(index=3)
    assert list(calls(tmp_path)) == ["mode=ok,seed=1"]
    assert not made(tmp_path, grid).run(index=0)
    assert [row[2] for row in made(tmp_path, grid).plan()] == ["failed", "new", "new", "finished"]
    with pytest.raises(RecipeError, match="--index must be from 0 to 3, the runs of this grid; got 4"):
        made(tmp_path, grid).run(index=4)
    with pytest.raises(RecipeError, match="--jobs must be at least 1; got 0"):
        made(tmp_path, grid).run(jobs=0)


def test_runs_share_the_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "6")
    made(tmp_path / "two", {"--seed": [0, 1]}).run(jobs=2)
    made(tmp_path / "one", {"--seed": [0]}).run()
    assert all(lines[0].endswith("threads 3") for lines in calls(tmp_path / "two").values())
    assert calls(tmp_path / "one")["seed=0"][0].endswith("threads 6")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    made(tmp_path / "few", {"--seed": [0, 1]}).run(jobs=2)
    assert calls(tmp_path / "few")["seed=0"][0].endswith("threads 1")


def wait_for(path: Path, text: str) -> None:
    for _ in range(600):
        if path.exists() and text in path.read_text():
            return
        time.sleep(0.05)
    raise AssertionError(f"{path} does not say {text!r}")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["killed", "interrupted"])
def test_a_killed_sweep_takes_its_runs_along_and_goes_on(tmp_path: Path, how: signal.Signals) -> None:
    root = Path(__file__).parents[3]
    path = os.pathsep.join([str(root), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    words = [sys.executable, "-m", "tests.pipeline.sweep.killed", str(tmp_path)]
    sweep = subprocess.Popen(words, env=os.environ | {"PYTHONPATH": path}, stderr=subprocess.DEVNULL)
    slow = tmp_path / "seed=0,mode=slow"
    wait_for(slow / "log.txt", "called")
    sweep.send_signal(how)
    assert sweep.wait(30) != 0
    recipe = SweepRecipe(command="fake", grid={"--seed": [0, 1], "mode": ["ok", "slow"]})
    again = Sweep(recipe, COMMAND, tmp_path)
    assert [row[2] for row in again.plan()] == ["finished", "running", "new", "new"]
    DirectoryLock(slow).release(slow)  # nobody holds it
    assert again.run(index=1)
    assert ["--resume" in line for line in calls(tmp_path)["seed=0,mode=slow"]] == [False, True]
    assert len(calls(tmp_path)["seed=0,mode=ok"]) == 1


def test_a_run_that_was_killed_behind_its_last_step_counts(tmp_path: Path) -> None:
    sweep = made(tmp_path, {"--seed": [0]})
    sweep.run()
    place = sweep.places[0]
    place.begin()
    assert place.state() == "finished"
    sweep.write()
    assert json.loads((tmp_path / "sweep.json").read_text())["runs"][0]["state"] == "finished"
    place.out.rename(tmp_path / "gone")
    assert place.state() == "running"
    other = Sweep(SweepRecipe(command="json", grid={"--seed": [0]}), Command("json", json=True), tmp_path / "json")
    other.places[0].directory.mkdir(parents=True)
    other.places[0].begin()
    other.places[0].result.write_text('{"half')
    assert other.places[0].state() == "running"
    other.places[0].result.write_text('{"score": 1}')
    assert other.places[0].state() == "finished"
    assert "--resume" not in other.places[0].words()


def test_a_run_that_another_process_is_at_is_left_to_it(tmp_path: Path) -> None:
    sweep = made(tmp_path, {"--seed": [0, 1]})
    lock = DirectoryLock(sweep.places[0].directory)
    said: list[str] = []
    assert not sweep.run(announce=said.append)
    assert "seed=0: another process is running it; left to that." in said
    assert list(calls(tmp_path)) == ["seed=1"]
    lock.release(sweep.places[0].directory)
    assert sweep.run()


def test_a_directory_of_other_arguments_is_refused(tmp_path: Path) -> None:
    made(tmp_path, {"--seed": [0]}, arguments=["x"]).run()
    with pytest.raises(LowdimError, match=r"holds a run of other arguments \(fake x --seed=0\)\. Choose another"):
        made(tmp_path, {"--seed": [0]}, arguments=["y"])


def test_numbers_can_be_picked(tmp_path: Path) -> None:
    sweep = made(tmp_path, {"--seed": [0, 1]}, report=["same", "pe*"])
    sweep.run()
    assert sweep.sheet().names == ["same", "peak_bytes"]
    row = sweep.sheet().rows[0]
    assert (row.mean("same"), row.spread("same"), row.mean("score")) == (3, 0, None)
    assert row.spread("peak_bytes") == pytest.approx(100 / math.sqrt(2))


def test_a_number_that_no_run_reports_is_told(tmp_path: Path) -> None:
    sweep = made(tmp_path, {"--seed": [0]}, report=["same", "acc*"])
    assert sweep.sheet().absent == []
    sweep.run()
    assert sweep.sheet().absent == ["acc*"]


def test_what_says_itself_that_it_diverged_is_not_averaged(tmp_path: Path) -> None:
    ends: list[dict[str, Any] | None] = [None, {"step": 40, "loss": 9.57, "uniform": 5.704}, {"step": 7, "back": 3}]
    sweep = made(tmp_path, {"--seed": [0, 1, 2]}, report=["validation.loss"])
    for place, end in zip(sweep.places, ends, strict=True):
        place.out.mkdir(parents=True)
        facts = {"versions": {"lowdim": "0"}, "validation": {"loss": 2.5 if end is None else 9.5}, "diverged": end}
        (place.out / "pretraining.json").write_text(json.dumps(facts))
        place.end(0, 1.0)
    (row,) = sweep.sheet().rows
    assert (row.state, row.mean("validation.loss")) == ("1 of 3, 2 diverged", 2.5)
    assert row.errors[0] == "the loss ends at 9.57, above the 5.704 of a uniform guess"
    assert row.errors[1] == "training diverged at step 7"


def test_files_whose_versions_name_this_program_are_its_own(tmp_path: Path) -> None:
    place = made(tmp_path, {"--seed": [0]}).places[0]
    place.out.mkdir(parents=True)
    (place.out / "pretraining.json").write_text('{"versions": {"lowdim": "0"}, "validation": {"loss": 2.5}}')
    (place.out / "config.json").write_text('{"hidden_size": 8}')
    assert numbers(place) == {"validation.loss": 2.5}

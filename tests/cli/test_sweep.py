"""``lowdim sweep`` from the command line, over this program's own commands."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from tests.train.pretrain import small

from lowdim.cli import app
from lowdim.cli.sweep import described
from lowdim.pipeline.sweep.api import Sweep
from lowdim.pipeline.sweep.recipe import SweepRecipe
from lowdim.report.build import build
from lowdim.train.pretrain import api

PROGRAM: Any = typer.main.get_command(app)


def written(folder: Path, text: str) -> Path:
    path = folder / "sweep.yaml"
    path.write_text(text)
    return path


def test_every_command_with_results_can_be_swept() -> None:
    found = {name: described(PROGRAM, name) for name in PROGRAM.commands if name != "sweep"}
    kept = {name for name, command in found.items() if command.out or command.json}
    assert {"prune", "recover", "train-sparse", "evaluate", "diagnose", "inspect", "front", "bench"} <= kept
    assert kept.isdisjoint({"serve", "methods"})
    assert (found["prune"].out, found["prune"].places) == ("OUT", ("MODEL",))
    assert found["train-sparse"].out == "--out"
    assert found["evaluate"].json
    assert [found[name].again for name in ("prune", "convert", "evaluate")] == ["--resume", "--overwrite", ""]
    assert found["inspect"].switches["--alpha"] == ("--alpha", "--no-alpha")
    assert found["prune"].switches["--true-sequential"] == ("--true-sequential", "")
    assert "recover.minutes" in found["prune"].keys
    assert [name for name, command in found.items() if command.sets and not command.keys] == []


def test_command_lines_are_those_of_the_command(tmp_path: Path) -> None:
    recipe = SweepRecipe(
        command="prune",
        arguments="--method wanda --samples 4",
        grid={"MODEL": ["m"], "--sparsity": [0.5, 0.6], "--true-sequential": [True], "evaluation.windows": [2]},
    )
    runs = recipe.runs(described(PROGRAM, "prune"))
    assert runs[1].arguments[-4:] == ("--sparsity=0.6", "--true-sequential", "--set", "evaluation.windows=2")


def test_a_dry_run_shows_and_runs_nothing(run, tmp_path: Path) -> None:
    recipe = written(tmp_path, "command: bench\narguments: m\ngrid: {--tokens: [4, 8]}\n")
    done = run("sweep", "--recipe", recipe, "--out", tmp_path / "out", "--dry-run")
    assert done.exit_code == 0, done.output
    assert "lowdim bench m --tokens=4 --json" in done.stdout
    assert "tokens=8" in done.stdout
    assert not (tmp_path / "out").exists()
    done = run("sweep", "--recipe", recipe, "--out", tmp_path / "out", "--dry-run", "--index", "1")
    assert "tokens=4" not in done.stdout


def test_hours_of_pretrainings_come_first(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOWDIM_CACHE", str(tmp_path / "cache"))
    (tmp_path / "recipe.yaml").write_text(small.recipe(small.write(tmp_path / "text.jsonl")).to_yaml())
    timed: list[int] = []
    plan = api.plan

    def told(recipe: Any, progress: Any = None) -> Any:
        timed.append(recipe.steps)
        return replace(plan(recipe), seconds=60.0 * recipe.steps)

    monkeypatch.setattr(api, "plan", told)
    lines = [
        "command: pretrain",
        f"arguments: --recipe {tmp_path}/recipe.yaml --quiet",
        "grid: {steps: [30, 10, 20], seed: [0, 1], optimizer.lr: [1e-3, 1e-2]}",
    ]
    recipe = written(tmp_path, "\n".join(lines))
    done = run("sweep", "--recipe", recipe, "--out", tmp_path / "out", "--dry-run")
    assert done.exit_code == 0, done.output
    assert "By the plan: 12 runs of 10.0 to 30.0 min on all threads, 2.0 to 6.0 h in all" in done.output
    assert sorted(timed) == [10, 30]  # the cheapest and the dearest alone
    lines[1] = f"arguments: --recipe {tmp_path}/recipe.yaml --quiet --set data.source={tmp_path}/none"
    done = run("sweep", "--recipe", written(tmp_path, "\n".join(lines)), "--out", tmp_path / "out", "--dry-run")
    assert "How many hours they take is not known until the first run ends." in done.output


@pytest.mark.slow
def test_runs_in_processes_of_their_own_and_what_fails(run, model: Path, text: Path, tmp_path: Path) -> None:
    """One run of a real command, and one of a model that is not there."""
    lines = [
        "command: evaluate",
        f"arguments: --text {text} --context 32 --windows 2 --quiet",
        f"grid: {{MODEL: [{model}, {tmp_path}/none]}}",
        "report: [perplexity.value]",
    ]
    recipe = written(tmp_path, "\n".join(lines))
    done = run("sweep", "--recipe", recipe, "--out", tmp_path / "out", "--jobs", "2")
    assert done.exit_code == 1
    assert "2 runs of lowdim evaluate, 0 finished, 2 to run, 2 at a time." in done.stderr
    assert "How many hours they take is not known until the first run ends." in done.stderr
    assert "0 of 1, 1 failed" in done.stdout
    assert "none" in done.stdout
    runs = json.loads((tmp_path / "out" / "sweep.json").read_text())["runs"]
    assert [each["state"] for each in runs] == ["finished", "failed"]
    assert "none" in runs[1]["error"]
    assert f"Report: {tmp_path / 'out.html'}" in done.stdout
    assert "1 of 2 runs finished." in (tmp_path / "out.html").read_text()
    (result,) = (tmp_path / "out").glob("*/result.json")
    assert json.loads(result.read_text())["perplexity"]["value"] > 1
    again = run("sweep", "--recipe", recipe, "--out", tmp_path / "out", "--index", "0")
    assert again.exit_code == 0
    assert "1 run of lowdim evaluate, 1 finished, 0 to run" in again.stderr


def test_the_page_of_a_sweep_of_pretrainings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs made in this process, where their commands would have: one finishes, one diverges, one was killed."""
    monkeypatch.setenv("LOWDIM_CACHE", str(tmp_path / "cache"))
    source = small.write(tmp_path / "text.jsonl")
    recipe = SweepRecipe(
        command="pretrain",
        arguments=f"--set data.source={source}",
        grid={"optimizer.lr": [1e-3, 1e-2, 1e30]},
        report="validation.loss",
    )
    made = Sweep(recipe, described(PROGRAM, "pretrain"), tmp_path / "sweep")
    low, middle, high = made.places
    for place in made.places:
        place.directory.mkdir(parents=True)
        place.begin()
    small.run(source, low.out, optimizer={"lr": 1e-3}, evaluation={"every": 2})
    low.end(0, 2.0)
    small.interrupt(lambda: small.run(source, middle.out, evaluation={"every": 2}), 5, monkeypatch)
    with pytest.warns(UserWarning, match="training diverged"):
        small.run(source, high.out, optimizer={"lr": 1e30}, precision="pure-bfloat16", clip=None)
    high.log.write_text("Error: training diverged at step 3 (loss nan, gradient norm nan)")
    high.end(1, 1.0)
    made.write()
    page = build(tmp_path / "sweep").read_text()
    assert "1 of 3 runs finished. Best: optimizer.lr 0.001, with validation.loss" in page
    assert "The best learning rate, 0.001, is the lowest of the grid." in page
    assert "optimizer.lr 0.01: not finished: it is under way, or was killed" in page
    assert "optimizer.lr 1e+30: diverged. training diverged at step 3" in page
    for lines in ("0.001, step 6:", "0.01, step 4:", "1e+30, step 2:"):  # validated and trained, trained, trained
        assert lines in page, lines
    assert page.count("<svg") == 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("command: prun\ngrid: {--seed: [0]}", "unknown command 'prun'. Did you mean 'prune'?"),
        ("command: sweep\ngrid: {--recipe: [a]}", "unknown command 'sweep'"),
        ("command: serve\ngrid: {--port: [1]}", "lowdim serve leaves no results"),
        ("command: evaluate\narguments: m\ngrid: {--sed: [0]}", "run 0 (sed=0): No such option: --sed"),
        ("command: evaluate\narguments: m\ngrid: {--seed: [x]}", "run 0 (seed=x): Invalid value for '--seed'"),
        ("command: evaluate\ngrid: {--seed: [0]}", "Missing argument 'MODEL'"),
        ("command: prune\narguments: m\ngrid: {alloc.m: [0]}", "unknown key 'alloc.m'"),
        ("command: prune\narguments: m\ngrid: {}", "grid: must be a mapping"),
        ("command: prune\narguments: m\ngrid: {--seed: [0, 0]}", "would both be in the directory 'seed=0'"),
        ("command: prune\ngrids: {--seed: [0]}", "unknown key 'grids'. Did you mean 'grid'?"),
        ("command: prune\narguments: m", "grid is required"),
    ],
)
def test_a_wrong_recipe_is_refused_before_anything_runs(run, tmp_path: Path, text: str, said: str) -> None:
    done = run("sweep", "--recipe", written(tmp_path, text), "--out", tmp_path / "out")
    assert done.exit_code == 2, done.output
    assert said in " ".join(done.stderr.split())
    assert not (tmp_path / "out").exists()


def test_wrong_numbers_and_files(run, tmp_path: Path) -> None:
    recipe = written(tmp_path, "command: bench\narguments: m\ngrid: {--tokens: [4]}\n")
    for flag, value, said in (("--jobs", "0", "--jobs must be at least 1"), ("--index", "1", "--index must be from 0")):
        done = run("sweep", "--recipe", recipe, "--out", tmp_path / "out", flag, value)
        assert done.exit_code == 2
        assert said in done.stderr
    done = run("sweep", "--recipe", tmp_path / "none.yaml", "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert "cannot read the recipe" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_grid_of_trainings(run, tmp_path: Path) -> None:
    lines = [
        "command: train-sparse",
        "arguments: --data digits --net mlp --epochs 1 --twins none --set training.every=5",
        "grid: {--method: [rigl, set], --seed: [0, 1]}",
        "report: ['*.test.accuracy']",
    ]
    recipe = written(tmp_path, "\n".join(lines))
    done = run("sweep", "--recipe", recipe, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    table = json.loads((tmp_path / "out" / "sweep.json").read_text())["table"]
    assert [row["axes"] for row in table] == [{"--method": "rigl"}, {"--method": "set"}]
    assert all(0 < row["mean"]["members.sparse.test.accuracy"] < 1 for row in table)
    assert all(row["spread"]["members.sparse.test.accuracy"] >= 0 for row in table)

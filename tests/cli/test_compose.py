"""``lowdim compose`` from the command line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

Run = Callable[..., Result]
RECIPE = """
stages:
  - prune: {sparsity: 0.5, method: magnitude}
  - edit: {edits: FACTS, lr: 0.01, steps: 2, masked: false}
orders: both
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of two stages in both orders, and facts beside it."""
    home = tmp_path_factory.mktemp("recipes")
    (home / "facts.jsonl").write_text(json.dumps({"prompt": "ab", "target": "c", "locality": ["x"]}), encoding="utf-8")
    path = home / "recipe.yaml"
    path.write_text(RECIPE.replace("FACTS", str(home / "facts.jsonl")), encoding="utf-8")
    return path


def test_both_orders_are_run_shown_and_written(run: Run, model: Path, text: Path, recipe: Path, tmp_path: Path) -> None:
    size = ["--windows", "2", "--set", "evaluation.context=32", "--text", text]
    done = run("compose", model, tmp_path / "out", "--recipe", recipe, *size, "--json", tmp_path / "found.json")
    assert done.exit_code == 0, done.output
    for words in ("prune → edit", "edit → prune", "order-free error", "pruned weights were no longer zero", "nats"):
        assert words in done.output, done.output
    found = json.loads((tmp_path / "found.json").read_text())
    assert found == json.loads((tmp_path / "out/compose.json").read_text())
    assert {"model", "reversed"} <= {path.name for path in (tmp_path / "out").iterdir()}
    assert "order sensitivity" in (tmp_path / "out.html").read_text().lower()


def test_a_dry_run_says_the_orders_and_the_time_of_every_stage_and_writes_nothing(
    run: Run, model: Path, text: Path, recipe: Path, tmp_path: Path
) -> None:
    size = ["--windows", "2", "--set", "evaluation.context=32", "--text", text]
    done = run("compose", model, tmp_path / "out", "--recipe", recipe, *size, "--dry-run")
    assert done.exit_code == 0, done.output
    said = done.output.splitlines()
    assert said[:2] == ["model: prune → edit", "reversed: edit → prune"]
    assert re.fullmatch(r"At most about [\d.]+ (min|h) on this machine:", said[2])
    assert re.fullmatch(r"  model: prune [\d.]+ (min|h), edit at most [\d.]+ (min|h)", said[3])
    assert re.fullmatch(r"  reversed: edit at most [\d.]+ (min|h), prune [\d.]+ (min|h)", said[4])
    assert re.fullmatch(r"  measuring 5 models: [\d.]+ (min|h)", said[5])
    assert not list(tmp_path.iterdir())


def test_a_dry_run_refuses_what_the_run_would(run: Run, model: Path, recipe: Path, tmp_path: Path) -> None:
    done = run("compose", "no-such-model", tmp_path / "out", "--recipe", recipe, "--text", "none", "--dry-run")
    assert done.exit_code in (1, 2) and "no-such-model" in done.output
    done = run("compose", model, tmp_path / "out", "--stages", "prune,factorise", "--text", "none", "--dry-run")
    assert done.exit_code in (1, 2) and "factorise after pruning" in done.output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--stages", "prune,factorise"], "factorise after pruning"),
        (["--stages", "prun"], "Did you mean 'prune'"),
        (["--orders", "both"], "needs two stages"),
        (["--tasks", "hardd"], "Did you mean 'hard'"),
        (["--stages", "edit", "--set", "stages=[{edit: {edits: no-such.jsonl}}]"], "no-such.jsonl"),
    ],
)
def test_a_wrong_recipe_is_refused(run: Run, model: Path, arguments: list[str], said: str, tmp_path: Path) -> None:
    done = run("compose", model, tmp_path / "out", *arguments, "--text", "none")
    assert done.exit_code in (1, 2) and said in done.output, done.output
    assert not list(tmp_path.glob("out*"))

"""``lowdim train-sparse``: flags over a recipe, a run from end to end, and mistakes named before any work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lowdim.train.compare.recipe import TrainingRecipe

RECIPE = """
data: {name: digits, limit: 400}
net: {name: mlp, hidden: [32]}
method: {name: rigl, every: 5}
epochs: 2
twins: [static]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    return path


def test_flags_lie_over_the_file_and_set_over_both(file: Path) -> None:
    recipe = TrainingRecipe.assemble(
        file, {"epochs": 7, "training.name": "rigl", "seed": 3}, ["training.every=9", "seed=4"]
    )
    assert (recipe.epochs, recipe.training.every, recipe.seed) == (7, 9, 4)
    assert recipe.data.limit == 400
    assert recipe.net.hidden == (32,)


def test_another_method_starts_from_its_own_defaults(file: Path) -> None:
    assert TrainingRecipe.assemble(file, {"training.name": "granet"}, []).training.every == 100


def test_no_file_means_defaults() -> None:
    assert TrainingRecipe.assemble(None, {}, []) == TrainingRecipe()
    assert TrainingRecipe.assemble(None, {}, ["net.hidden=[8]"]).net.hidden == (8,)


def test_a_run_from_end_to_end(run, file: Path, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    out = tmp_path / "out"
    done = run("train-sparse", "--recipe", file, "--out", out, "--quiet")
    assert done.exit_code == 0, done.output
    assert "Sparse, rigl" in done.output
    assert "Static" in done.output
    assert "no faster for them" in done.output
    facts = json.loads((out / "training.json").read_text())
    assert list(facts["members"]) == ["static", "sparse"]
    page = (tmp_path / "out.html").read_text()
    assert "Ten rules for sparse training" in page
    again = run("train-sparse", "--recipe", file, "--out", out, "--quiet")
    assert again.exit_code == 1
    assert "--overwrite" in again.output
    assert run("report", out, "--html", tmp_path / "again.html").exit_code == 0
    assert (tmp_path / "again.html").read_text() == page


def test_a_bias_is_trained_against_from_flags_alone(run, tmp_path: Path) -> None:
    data = ["--data", "coloured-digits", "--set", "data.limit=300", "--set", "data.settings={conflicting: 0.1}"]
    how = ["--objective", "rest", "--set", "objective.up=9", "--sparsity", "0.8", "--epochs", "2", "--batch", "32"]
    net = ["--net", "mlp", "--set", "net.hidden=[16]", "--method", "static", "--twins", "dense"]
    done = run("train-sparse", *data, *how, *net, "--out", tmp_path / "out", "--quiet")
    assert done.exit_code == 0, done.output
    assert "worst group, %" in done.output
    assert "Of its worst group it gets" in " ".join(done.output.split())
    facts = json.loads((tmp_path / "out" / "training.json").read_text())
    assert facts["recipe"]["objective"] == {"name": "rest", "up": 9.0, "over": {"name": "erm"}, "by": "sampling"}
    page = (tmp_path / "out.html").read_text()
    assert "Trained with objective rest, the twins as well." in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "rgl"], "Did you mean 'rigl'"),
        (["--data", "digitz"], "Did you mean 'digits'"),
        (["--net", "conv", "--data", "wine"], "does not take the table data"),
        (["--sparsity", "1.5"], "sparsity must be less than 1"),
        (["--set", "net.hid=3"], "Did you mean 'net.hidden'"),
        (["--set", "training.every"], "--set takes KEY=VALUE"),
        (["--recipe", "none.yaml"], "cannot read the recipe"),
        (["--twins", "dens"], "Did you mean 'dense'"),
        (["--objective", "rst"], "Did you mean 'rest'"),
        (["--objective", "rest"], "needs groups"),
        (["--sampler", "ranked"], "needs ranks"),
        (["--groups", "colour"], "data 'fashion-mnist' has no labels of groups 'colour'"),
        (["--set", "sampler.keep=0.5"], "sampler.keep is a setting of dynamic-pruning"),
    ],
)
def test_mistakes_cost_no_work(run, arguments: list[str], message: str) -> None:
    done = run("train-sparse", *arguments)
    assert done.exit_code == 2
    assert message in done.output


def test_ranks_that_are_not_there_are_named(run) -> None:
    done = run("train-sparse", "--objective", "rest", "--ranks", "nowhere")
    assert done.exit_code == 1
    assert "nowhere holds no ranks" in done.output


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (["--method", "st-rnn", "--set", "net.hidden=[30]"], "30 rows, which are not 4 stacked gates"),
        (["--method", "st-rnn", "--set", "pattern=4x4"], "use pattern='gates:4'"),
        (["--method", "selfish-rnn"], "no sparse weight is of an nn.LSTM"),
        (["--method", "ctre", "--net", "conv"], "CTRE trains linear layers"),
        (["--method", "set", "--set", "pattern=2x2"], "SET(regrow='zero')"),
    ],
)
def test_what_a_method_cannot_train_is_refused_before_any_training_and_leaves_nothing(
    run, tmp_path: Path, changes: list[str], reason: str
) -> None:
    pytest.importorskip("sklearn")
    fresh = ["--data", "digits", "--twins", "dense", "--epochs", "50000"]
    done = run("train-sparse", *fresh, *changes, "--quiet", "--out", tmp_path / "out")
    assert done.exit_code == 2, done.output
    assert reason in " ".join(done.output.split())
    assert list(tmp_path.iterdir()) == []

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from tests.train.pretrain import small


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LOWDIM_CACHE", str(tmp_path / "cache"))
    source = small.write(tmp_path / "text.jsonl")
    file = tmp_path / "recipe.yaml"
    file.write_text(small.recipe(source).to_yaml())
    return file


def test_from_a_recipe_to_a_model_that_generates(run, recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run("pretrain", "--recipe", recipe, "--out", out, "--set", "steps=5")
    assert done.exit_code == 0, done.output
    for said in ("weights are trained", "5 steps of 6 x 16 tokens", "perplexity", "GFLOP/s", f"Output: {out}"):
        assert said in done.output
    assert json.loads((out / "pretraining.json").read_text())["recipe"]["steps"] == 5
    assert f"Report: {tmp_path / 'out.html'}" in done.output
    page = (tmp_path / "out.html").read_text()
    assert page.count("<svg") == 4 and "5 steps on" in page and "Peak memory" in page
    assert run("generate", out, "the cat", "--max-tokens", "3", "--quiet").exit_code == 0
    again = run("pretrain", "--recipe", recipe, "--out", out, "--set", "steps=5", "--resume")
    assert again.exit_code == 0 and "perplexity" in again.output


def test_the_plan_alone(run, recipe: Path, tmp_path: Path) -> None:
    done = run("pretrain", "--recipe", recipe, "--dry-run", "--quiet")
    assert done.exit_code == 0, done.output
    assert "min on this machine" in done.output and "MB" in done.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "said", "code"),
    [
        ([], "--out is required", 2),
        (["--out", "OUT", "--set", "stepps=3"], "Did you mean 'steps'", 2),
        (["--out", "OUT", "--set", "data.source=/nowhere.txt"], "there is no file '/nowhere.txt'", 2),
        (["--out", "OUT", "--set", "length=4000"], "more than the 64 positions", 2),
    ],
)
def test_what_is_wrong_is_one_sentence(
    arguments: list[str], said: str, code: int, run, recipe: Path, tmp_path: Path
) -> None:
    done = run("pretrain", "--recipe", recipe, *[str(tmp_path / "out") if a == "OUT" else a for a in arguments])
    assert done.exit_code == code and said in done.output
    assert not list(tmp_path.glob("out*"))


def test_what_diverges_fails_and_leaves_the_last_good_model(run, recipe: Path, tmp_path: Path) -> None:
    wrong = ["optimizer.lr=1e30", "precision=pure-bfloat16", "clip=null"]
    settings = [word for each in wrong for word in ("--set", each)]
    with pytest.warns(UserWarning, match="training diverged"):
        done = run("pretrain", "--recipe", recipe, "--out", tmp_path / "out", "--quiet", *settings)
    assert done.exit_code == 1 and "training diverged at step" in done.output
    assert (tmp_path / "out" / "model.safetensors").exists()
    assert "Training diverged at step" in (tmp_path / "out.html").read_text()


def test_what_ends_above_a_uniform_guess_has_diverged(run, recipe: Path, tmp_path: Path) -> None:
    settings = [word for each in ("optimizer.lr=3.0", "steps=40", "clip=null") for word in ("--set", each)]
    with pytest.warns(UserWarning, match=r"the validation loss of step 40, the last, is .* of a uniform guess"):
        done = run("pretrain", "--recipe", recipe, "--out", tmp_path / "out", "--quiet", *settings)
    assert done.exit_code == 1 and "training diverged: the validation loss of step 40, the last, is" in done.output
    assert "and ends above a uniform guess" in (tmp_path / "out.html").read_text()
    facts = json.loads((tmp_path / "out" / "pretraining.json").read_text())
    assert facts["diverged"] == {"step": 40, "loss": facts["validation"]["loss"], "uniform": math.log(300)}
    again = run("pretrain", "--recipe", recipe, "--out", tmp_path / "out", "--quiet", "--resume", *settings)
    assert again.exit_code == 1 and "of a uniform guess" in again.output

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.train.draft import small
from tests.train.pretrain import small as pretraining


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LOWDIM_CACHE", str(tmp_path / "cache"))
    return pretraining.write(tmp_path / "text.jsonl")


@pytest.fixture
def given(text: Path, tmp_path: Path) -> list[str]:
    """A recipe of a tiny run, and its target."""
    base = small.target(text, tmp_path / "base")
    file = tmp_path / "recipe.yaml"
    file.write_text(small.recipe(text, "builtin:smollm2-135m").to_yaml())  # TARGET comes before the recipe
    return [str(base), "--recipe", str(file)]


def test_from_a_target_to_a_draft_that_generates(run, given: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run("distill-draft", *given, "--out", out, "--steps", "4", "--method", "all", "--set", "drafter.keep=0.5")
    assert done.exit_code == 0, done.output
    for said in ("compared over", "4 steps of 96 tokens", "adaspec", "distillspec", "ce", "start", f"Output: {out}"):
        assert said in done.output
    told = json.loads((out / "drafting.json").read_text())
    assert told["recipe"]["drafter"] == {"name": "adaspec", "keep": 0.5, "over": "kept"}
    assert [each["name"] for each in told["recipe"]["rivals"]] == ["distillspec", "ce"]
    assert f"{told['measured']['ce']['held']['acceptance']:.1%}" in done.output
    assert run("generate", out, "the cat", "--max-tokens", "3", "--quiet").exit_code == 0


def test_the_plan_alone(run, given: list[str], tmp_path: Path) -> None:
    done = run("distill-draft", *given, "--dry-run", "--quiet", "--method", "ce")
    assert done.exit_code == 0, done.output
    assert "min on this machine" in done.output and "ce: 6 steps" in done.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--draft is required"),
        (["--draft", "target:2"], "--out is required"),
        (["--draft", "22m", "--out", "OUT"], "unknown draft '22m'. Did you mean '20m'?"),
        (["--draft", "20m", "--out", "OUT", "--method", "adaspek"], "Did you mean 'adaspec'?"),
        (["--draft", "20m", "--out", "OUT", "--text", "/nowhere.txt"], "there is no file '/nowhere.txt'"),
        (["--draft", "20m", "--out", "OUT", "--set", "drafter.keep=2"], "drafter.keep must be above 0 and at most 1"),
    ],
)
def test_what_is_wrong_is_one_sentence(arguments: list[str], said: str, run, tmp_path: Path) -> None:
    done = run("distill-draft", *[str(tmp_path / "out") if a == "OUT" else a for a in arguments])
    assert done.exit_code == 2 and said in " ".join(done.output.split())
    assert not list(tmp_path.glob("out*"))

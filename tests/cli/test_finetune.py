"""``lowdim finetune`` from the command line, on a small pruned model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.train.finetune.small import prune, rows
from tests.train.pretrain import small

from lowdim.core.masks import Masks

TINY = ["--set", "data.template=plain", "--set", "length=40", "--set", "batch=4", "--set", "device=cpu"]
LIFT = [*TINY, "--set", "optimizer.rank=2", "--set", "optimizer.budget=1", "--set", "optimizer.lr=0.01"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOWDIM_CACHE", str(home / "cache"))
        prune(small.run(small.write(home / "text.jsonl"), home / "base").out, home / "pruned")
    rows(home)
    return home


@pytest.fixture
def home(models: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LOWDIM_CACHE", str(models / "cache"))
    return models


@pytest.mark.usefixtures("checked_here")
def test_from_a_pruned_model_to_one_that_answers(run, home: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["finetune", home / "pruned", out, "--data", home / "chats.jsonl", "--steps", "5", *LIFT]
    done = run(*command)
    assert done.exit_code == 0, done.output
    for said in ("are trained", "zeros of the pruned model stay", "5 steps of 4 rows", "before", "after", "Read back"):
        assert said in done.output
    assert "zeros in 14 pruned matrices are zero still" in done.output and f"Output: {out}" in done.output
    assert Masks.load(out) == Masks.load(home / "pruned")
    assert json.loads((out / "finetuning.json").read_text())["recipe"]["optimizer"]["name"] == "lift"
    assert run("verify", out).exit_code == 0
    assert run("generate", out, "the cat", "--max-tokens", "3", "--quiet").exit_code == 0
    again = run(*command, "--resume")
    assert again.exit_code == 0 and "Read back" in again.output


def test_preferences_and_the_plan_alone(run, home: Path, tmp_path: Path) -> None:
    pairs = ["--data", home / "pairs.jsonl", "--objective", "todo", "--steps", "4"]
    done = run("finetune", home / "pruned", tmp_path / "out", *pairs, *LIFT)
    assert done.exit_code == 0, done.output
    assert "preference accuracy, ties apart" in done.output and "the same with ties" in done.output
    done = run("finetune", home / "pruned", tmp_path / "other", *pairs, *LIFT, "--dry-run", "--quiet")
    assert done.exit_code == 0 and "min on this machine" in done.output and not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("arguments", "said", "code"),
    [
        ([], "data.source is empty", 2),
        (["--data", "nowhere.jsonl"], "there is no file 'nowhere.jsonl'", 2),
        (["--data", "CHATS", "--method", "lifft"], "Did you mean 'lift'", 2),
        (["--data", "CHATS", "--objective", "tod"], "Did you mean 'todo'", 2),
        (["--data", "CHATS", "--objective", "todo"], "'prompt', 'chosen' and 'rejected'", 1),
        (["--data", "SILENT", "--objective", "todo"], "has no field 'tie'", 1),
        (["--data", "EQUAL", "--objective", "dpo"], "nothing to prefer", 1),
        (["--data", "CHATS", "--set", "optimizer.budget=500"], "budget=500 asks for", 2),
        (["--data", "CHATS", "--set", "optimizer.rank=99", "--set", "optimizer.budget=1"], "rank=99 exceeds", 2),
        (["--data", "CHATS", "--set", "length=4000"], "more than the 64 positions", 2),
        (["--data", "CHATS", "--method", "lora", "--set", "optimizer=muon"], "leave adapter out", 2),
    ],
)
def test_what_is_wrong_is_one_sentence_and_nothing_is_written(
    arguments: list[str], said: str, code: int, run, home: Path, tmp_path: Path
) -> None:
    files = {"CHATS": "chats.jsonl", "SILENT": "silent.jsonl", "EQUAL": "equal.jsonl"}
    given = [home / files[word] if word in files else word for word in arguments]
    done = run("finetune", home / "pruned", tmp_path / "out", *TINY, *given)
    assert done.exit_code == code and said in done.output, done.output
    assert not list(tmp_path.glob("out*"))

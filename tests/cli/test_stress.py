"""``lowdim stress`` from the command line, with the hard tasks' questions replaced by a few of characters."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from lowdim.data.questions import Question
from lowdim.evaluate.quality import tasks

Run = Callable[..., Result]


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every task be the same twelve questions."""
    asked = [
        Question(("ab",) * 2, (f" {letter}x", f" y{letter}"), place % 2) for place, letter in enumerate("abcdefghijkl")
    ]
    monkeypatch.setattr(tasks, "load", lambda name: asked)


@pytest.mark.usefixtures("few")
def test_every_task_at_every_sparsity_is_shown_and_written(
    run: Run, model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = ["--windows", "2", "--context", "32", "--text", text, "--method", "magnitude", "--samples", "2"]
    done = run("stress", model, "--out", tmp_path / "out", "--grid", "0,0.5", *size, "--json", tmp_path / "found.json")
    assert done.exit_code == 0, done.output
    for name in tasks.PRESETS["hard"]:
        assert name in done.output
    found = json.loads((tmp_path / "found.json").read_text())
    assert [row["sparsity"] for row in found["rows"]] == [0.0, 0.5]
    zero, half = found["rows"]
    assert all(task["lost"] == task["won"] == 0 for task in zero["tasks"].values())
    assert zero["perplexity"] == found["dense"]["perplexity"] and zero["zeros"] == 0 and half["zeros"] == 0.5
    assert found["sentence"] in done.output
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["stress.json"]
    page = (tmp_path / "out.html").read_text(encoding="utf-8")
    assert "Newcombe" in page and "csqa" in page
    again = run("stress", model, "--out", tmp_path / "out", "--grid", "0,0.5", *size, "--resume", "--quiet")
    assert again.exit_code == 0, again.output
    monkeypatch.setattr(tasks, "load", lambda name: [Question(("ab",) * 2, (" x", " y"), 0)] * 3)
    other = run("stress", model, "--out", tmp_path / "out", "--grid", "0,0.5", *size, "--resume", "--quiet")
    assert other.exit_code == 1 and "evaluation.questions.csqa" in other.output


@pytest.mark.usefixtures("few")
def test_the_start_of_text_token_goes_where_it_is_asked_for(
    run: Run, model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lowdim.evaluate.quality import zeroshot

    real, asked = zeroshot.evaluate_tasks, []

    def told(*given: Any, **how: Any) -> Any:
        found = real(*given, **how)
        asked.extend(task.bos for task in found.values())
        return found

    monkeypatch.setattr(zeroshot, "evaluate_tasks", told)
    values = {}
    for bos in ("tokenizer", "window"):
        size = ["--windows", "2", "--context", "32", "--text", text, "--method", "magnitude", "--bos", bos]
        done = run("stress", model, "--out", tmp_path / bos, "--grid", "0.5", *size)
        assert done.exit_code == 0, done.output
        found = json.loads((tmp_path / bos / "stress.json").read_text())
        assert found["protocol"]["bos"] == bos and set(asked) == {bos}
        values[bos] = found["dense"]["perplexity"], found["rows"][0]["perplexity"]
        asked.clear()
    assert all(one != other for one, other in zip(*values.values(), strict=True))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--grid", "0"], "prunes nothing"),
        (["--grid", "1.5"], "must be at least 0 and below 1"),
        (["--tolerance", "0.1,0.2"], "takes one share"),
        (["--tolerance", "csqa="], "TASK=SHARE"),
        (["--tolerance", "piqa=0.1"], "that is no hard task"),
        (["--set", "pattern=2:4"], "pattern 2:4 is sparsity 0.5"),
        (["--set", "sparsity=0.5"], "the grid prunes"),
        (["--method", "wandaa"], "Did you mean"),
        (["--tasks", "piqaa"], "Did you mean 'piqa'"),
        (["--limit", "0"], "limit must be"),
        (["--windows", "3"], "windows is of the text"),
        (["--context", "32"], "context is of the text"),
        (["--bos", "first"], "evaluation.bos"),
        (["--set", "recover.stage=blocks"], "Say how long: --recover MINUTES"),
        (["--recover", "1", "--set", "recover.minutes=2"], "recover.minutes is not the recipe's to say"),
        (["--recover", "1", "--set", "recover.stag=blocks"], "Did you mean 'stage'"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_loaded(
    run: Run, arguments: list[str], said: str, tmp_path: Path
) -> None:
    done = run("stress", "no-such-model", "--out", tmp_path / "out", "--text", "none", *arguments)
    assert done.exit_code in (1, 2) and said in done.output, done.output
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("few")
def test_recovered_models_are_asked_too_and_a_text_too_short_is_refused_first(
    run: Run, model: Path, text: Path, tmp_path: Path
) -> None:
    size = ["--windows", "2", "--context", "32", "--text", text, "--method", "magnitude", "--calibration", text]
    size += ["--samples", "2", "--set", "calibration.context=32", "--grid", "0.5", "--recover", "0.03"]
    done = run("stress", model, "--out", tmp_path / "short", *size)
    assert done.exit_code == 1 and "use samples=312" in done.output, done.output
    assert not list(tmp_path.iterdir())
    more = [
        "--set",
        "recover.calibration.samples=64",
        "--set",
        "recover.batch_tokens=256",
        "--set",
        "recover.stage=blocks",
    ]
    done = run("stress", model, "--out", tmp_path / "short", *size[:-1], "0.0001", *more)
    assert done.exit_code == 2 and "minutes=0.0001 is too short" in done.output, done.output
    assert not list(tmp_path.iterdir())
    done = run("stress", model, "--out", tmp_path / "out", *size, *more, "--keep")
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "out/stress.json").read_text())
    assert [row["form"] for row in found["rows"]] == ["pruned", "recovered"]
    assert [row["zeros"] for row in found["rows"]] == [0.5, 0.5]
    assert {path.name for path in (tmp_path / "out").iterdir() if path.is_dir()} == {"pruned-50", "recovered-50"}

"""Questions that cannot be asked are refused before anything is computed, by every command that asks some."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.turns import turns
from transformers import LlamaForCausalLM
from typer.testing import Result

from lowdim.evaluate.quality import tasks
from lowdim.models.walk.stream import Stream

Run = Callable[..., Result]
GOOD = {"context": "1 + 1 =", "choices": ["2", "3"], "label": 0}
BAD = {
    "missing": (None, "does not exist"),
    "empty": ("", "is empty"),
    "no JSON": ("a, b\n", "not JSON"),
    "no label": (json.dumps({**GOOD, "label": 2}), "'label' must be the index of a choice"),
    "one choice": (json.dumps(GOOD) + "\n" + json.dumps({**GOOD, "choices": ["2"]}), "line 2: 'choices' must be"),
    "too long": (
        json.dumps([GOOD, {**GOOD, "choices": ["2", "3" * 200]}]),
        "question '1 + 1 =': a continuation has 201 tokens, more than max_length=128. Change the question, or leave",
    ),
}
COMMANDS = {
    "evaluate": "evaluate {model} --text {text} --context 32 --tasks {file}",
    "prune": "prune {model} {out} --sparsity 0.5 --method magnitude --set evaluation.tasks={file}",
    "recover": "recover {model} {out} --teacher {model} --calibration {text} --samples 128 --context 32 "
    "--set evaluation.tasks={file}",
    "prune, recover": "prune {model} {out} --sparsity 0.5 --calibration {text} --set evaluation.tasks={file} "
    "--set recover.calibration.samples=128 --set recover.calibration.context=32",
    "stress": "stress {model} --out {out} --text {text} --context 32 --tasks {file}",
    "compose": "compose {model} {out} --set evaluation.tasks={file}",
    "front": "front {model} --out {out} --text {text} --context 32 --calibration {text} --tasks {file}",
    "essential": "inspect {model} --essential {file}",
    "junk DNA": "inspect {model} --junk-dna {file}",
}


@pytest.fixture(autouse=True)
def nothing_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    def computed(*arguments: object, **options: object) -> None:
        raise AssertionError("something was computed")

    for owner, name in ((Stream, "forward"), (Stream, "capture"), (LlamaForCausalLM, "forward")):
        monkeypatch.setattr(owner, name, computed)
    monkeypatch.setitem(tasks.PRESETS, "hard", ())


@pytest.mark.parametrize("command", COMMANDS)
def test_questions_are_read_before_anything_is_computed(
    command: str, run: Run, model: Path, text: Path, tmp_path: Path
) -> None:
    wrong = list(BAD.values())
    for number, (content, said) in enumerate(wrong if command == "evaluate" else wrong[::3]):
        file, out = tmp_path / f"{number}.jsonl", tmp_path / "out"
        if content is not None:
            file.write_text(content)
        done = run(*COMMANDS[command].format(model=model, text=text, file=file, out=out).split())
        shown = " ".join(done.output.split())
        assert done.exit_code == 1 and said in shown and str(file) in shown, shown
        assert not out.exists()


@pytest.mark.parametrize("command", turns(list(COMMANDS), of=4))
def test_good_ones_are_asked(command: str, run: Run, model: Path, text: Path, tmp_path: Path) -> None:
    (tmp_path / "good.jsonl").write_text(json.dumps(GOOD))
    files = {"model": model, "text": text, "file": tmp_path / "good.jsonl", "out": tmp_path / "out"}
    done = run(*COMMANDS[command].format(**files).split())
    assert "something was computed" in done.output, done.output

"""What a run is to measure is checked before any work: nothing is computed, and no data is read."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.evaluate.conftest import build_tokenizer
from tests.pipeline.recover import small
from tests.prune import tiny

from lowdim.core.errors import CheckpointError
from lowdim.data.windows import windows
from lowdim.models.disk.checks import run_checks
from lowdim.models.walk.opened import Opened
from lowdim.models.walk.stream import Stream
from lowdim.pipeline.recover.api import recover
from lowdim.pipeline.recover.chain import prune_and_recover, split
from lowdim.prune.api import plan, prune


@pytest.fixture
def nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    def done(*arguments: object, **options: object) -> None:
        pytest.fail("work was begun")

    for owner, name in ((Stream, "forward"), (Stream, "capture"), (Opened, "check_weights")):
        monkeypatch.setattr(owner, name, done)


def unread() -> Iterator[Any]:
    pytest.fail("calibration data was read")
    yield


def in_memory(saved: Path, out: Path, evaluation: dict[str, Any]) -> None:
    prune(tiny.model(), tiny.recipe(method="wanda", evaluation=evaluation), calibration=unread(), out=out)


def on_disk(saved: Path, out: Path, evaluation: dict[str, Any]) -> None:
    prune(str(saved), tiny.recipe(method="wanda", evaluation=evaluation), calibration=unread(), out=out)


def planned(saved: Path, out: Path, evaluation: dict[str, Any]) -> None:
    plan(str(saved), tiny.recipe(method="wanda", evaluation=evaluation))


def recovered(saved: Path, out: Path, evaluation: dict[str, Any]) -> None:
    recover(str(saved), small.recipe(evaluation=evaluation, teacher=str(saved)), calibration=unread(), out=out)


def with_a_section(saved: Path, out: Path, evaluation: dict[str, Any]) -> None:
    given = [f"evaluation.{key}={value}" for key, value in evaluation.items()]
    recipe, recovery = split(None, {"sparsity": 0.5, "method": "magnitude"}, [*given, "recover.minutes=1"])
    assert recovery is not None
    prune_and_recover(str(saved), recipe, recovery, out=out)


RUNS: list[Callable[[Path, Path, dict[str, Any]], None]] = [in_memory, on_disk, planned, recovered, with_a_section]


@pytest.mark.usefixtures("nothing_is_done")
@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize(
    ("evaluation", "said"),
    [
        ({"tasks": "piqa"}, "tasks=piqa"),
        ({"tasks": "sciq,boolq", "limit": 3}, "tasks=sciq,boolq"),
        ({"tasks": "mine.jsonl", "text": "builtin"}, "tasks=mine.jsonl"),
        ({"text": "mine.txt"}, "text=mine.txt"),
        ({"text": "builtin", "windows": 2}, "text=builtin"),
    ],
)
def test_what_needs_a_tokenizer_is_refused_without(
    run: Callable[..., None], evaluation: dict[str, Any], said: str, saved: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError) as refusal:
        run(saved("llama"), tmp_path / "out", evaluation)
    name = said.partition("=")[0]
    assert str(refusal.value) == (
        f"evaluation.{said} needs the model's tokenizer, and there is none. Copy the tokenizer's files beside the "
        f"weights (in Python tokenizer= gives one), or leave evaluation.{name} out."
    )
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.pruned").exists()


def test_a_text_that_nobody_asked_for_is_left_out_and_that_is_said(
    saved: Callable[[str], Path], tmp_path: Path
) -> None:
    recipe = tiny.recipe(method="magnitude", evaluation={})
    for model, out in ((tiny.model(), None), (str(saved("gpt2")), tmp_path / "out")):
        with pytest.warns(UserWarning, match="perplexity is not measured: there is no tokenizer"):
            assert prune(model, recipe, out=out).manifest["evaluation"] == {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prune(tiny.model(), tiny.recipe(method="magnitude", evaluation={"text": None}))


@pytest.mark.parametrize("compute", ["bfloat16", "float32"])
def test_a_run_records_the_dtype_of_its_forwards_and_passes_its_own_check(compute: str, tmp_path: Path) -> None:
    source = tiny.save(tmp_path / "in", "llama")
    build_tokenizer().save_pretrained(source)
    file = tmp_path / "eval.txt"
    file.write_text("the cat. " * 99)
    asked = tiny.recipe(method="magnitude", compute=compute, evaluation={"text": str(file), "context": 16})
    made = prune(str(source), asked, out=tmp_path / "out").manifest["evaluation"]["perplexity"]
    assert made["compute"] == compute
    text = windows(file, build_tokenizer(), 16).input_ids
    (check,) = (check for check in run_checks(tmp_path / "out", tokens=text) if check.name == "perplexity")
    assert check.passed, check

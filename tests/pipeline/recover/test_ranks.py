"""Several ranks recover what one process does: the same masks, the same losses to rounding."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.pipeline.recover import small
from tests.prune import tiny
from tests.ranks import finished
from tests.train.gloo import joined

from lowdim.core.errors import LowdimError, RecipeError
from lowdim.models.disk import manifest
from lowdim.pipeline.recover.api import recover
from lowdim.runs.fingerprint import ResumeError
from lowdim.train.loop import Loop

# Batches of six sequences of 16 tokens, which two and three ranks share evenly; one step takes two of them.
SHARED: dict[str, Any] = {
    "batch_tokens": 96,
    "calibration": {"samples": 48},
    "blocks": {"passes": 1},
    "distill": {"sequences": 12, "passes": 3},
}
TEXT = tiny.tokens(samples=48, context=16)
JOBS: dict[str, tuple[str, dict[str, Any]]] = {
    "fixed": ("plain", {}),
    "moving": ("2:4", {"stage": "distill", "masks": {"name": "ast", "every": 3, "score": "magnitude"}}),
    "weighted": ("2:4", {"stage": "distill", "masks": {"name": "ast", "every": 3}}),
    "rounded": ("plain", {"stage": "blocks", "quantize": "int8"}),
}
CUT = {"sharded": "fixed", "sharded moving": "moving"}
"""Jobs whose blocks are cut over the ranks, and those that they are like."""


def job(student: Path, out: Path, settings: dict[str, Any], **how: Any) -> None:
    recover(student, small.recipe(**SHARED | settings), out=out, calibration=TEXT, **how)


def rank(index: int, size: int, home: str, students: dict[str, str]) -> None:
    with joined(index, size, home):
        for name, (kind, settings) in JOBS.items():
            job(Path(students[kind]), Path(home) / name, settings)
        for name, like in CUT.items():
            kind, settings = JOBS[like]
            job(Path(students[kind]), Path(home) / name, cut(settings))
        kind, settings = JOBS["moving"]
        stopped(Path(students[kind]), Path(home) / "stopped", cut(settings))
        with pytest.raises(LowdimError, match=f"which {size} ranks cannot share"):
            job(Path(students["plain"]), Path(home) / "narrow", {"batch_tokens": 16})


def cut(settings: dict[str, Any]) -> dict[str, Any]:
    return settings | {"distill": {**SHARED["distill"], "shard": True}, "save_seconds": 0}


def stopped(student: Path, out: Path, settings: dict[str, Any]) -> None:
    """Recover, killed once in the midst of the steps."""
    real, calls = Loop.run, list[int]()

    def run(self: Loop, *args: Any) -> float:
        calls.append(self.step)
        if self.step == 7:
            raise KeyboardInterrupt
        return real(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, "run", run)
        with pytest.raises(KeyboardInterrupt):
            job(student, out, settings)
    job(student, out, settings, resume=True)


@pytest.fixture(scope="module")
def students(pruned: Callable[..., Path], two_four: Callable[[str], Path]) -> dict[str, str]:
    return {"plain": str(pruned("llama")), "2:4": str(two_four("llama"))}


@pytest.fixture(scope="module")
def alone(students: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("alone")
    for name, (kind, settings) in JOBS.items():
        job(Path(students[kind]), home / name, settings)
    return home


@pytest.fixture(scope="module", params=[2, pytest.param(3, marks=pytest.mark.slow)])
def together(
    request: pytest.FixtureRequest, students: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    home, main = tmp_path_factory.mktemp("ranks"), partial(rank, students=students)
    return finished(request.param, home, main)


@pytest.mark.parametrize(("name", "like"), [*((name, name) for name in JOBS), *CUT.items()])
def test_as_one_process(name: str, like: str, alone: Path, together: Path) -> None:
    one, many = alone / like, together / name
    assert small.same_zeros(one, many)
    first, second = manifest.read(one).recovery, manifest.read(many).recovery
    assert first is not None and second is not None
    for part in ("stages", "masks"):
        assert first[part] == second[part]
    for key in ("before", "after", "tokens"):
        if first["distill"] is not None:
            assert second["distill"][key] == pytest.approx(first["distill"][key], rel=1e-3)
        for index, fit in first["blocks"].items():
            if key in fit:
                assert second["blocks"][index][key] == pytest.approx(fit[key], rel=1e-3)
    assert first["distill"] is None or second["distill"]["after"] < second["distill"]["before"]


def test_what_was_cut_goes_on_to_the_same_bytes(together: Path) -> None:
    whole, again = tiny.stored(together / "sharded moving"), tiny.stored(together / "stopped")
    assert whole.keys() == again.keys()
    assert all(torch.equal(tensor, again[name]) for name, tensor in whole.items())
    assert not list(together.glob("*.partial"))


def test_one_process_has_nothing_to_cut(students: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(LowdimError, match="Start them with torchrun"):
        job(Path(students["plain"]), tmp_path / "out", {"distill": {"shard": True}})
    with pytest.raises(RecipeError, match="round block by block"):
        small.recipe(distill={"shard": True}, quantize="int8")
    with pytest.raises(RecipeError, match=r"Leave masks\.slorb out"):
        small.recipe(distill={"shard": True}, stage="distill", masks={"name": "ast", "slorb": 4})


def test_the_weights_too(alone: Path, together: Path) -> None:
    first, second = tiny.stored(alone / "fixed"), tiny.stored(together / "fixed")
    assert all(torch.allclose(tensor, second[name], atol=1e-3) for name, tensor in first.items())


def test_another_number_of_ranks_goes_on_with_nothing(students: dict[str, str], tmp_path: Path) -> None:
    """What one rank left unfinished, one of another number does not take for its own."""
    from lowdim.pipeline.recover import api

    out = tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api, "build_record", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            job(Path(students["plain"]), out, {"stage": "distill"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lowdim.models.ranks.size", lambda: 2)
        with pytest.raises(ResumeError, match="differs in ranks"):
            job(Path(students["plain"]), out, {"stage": "distill"}, resume=True)

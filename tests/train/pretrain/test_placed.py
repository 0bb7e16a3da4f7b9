"""Models with a placement, made and trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.train.pretrain import small
from torch.nn.functional import cross_entropy

import lowdim
from lowdim.nn.placement import ProRes
from lowdim.report.pretrain.page import render
from lowdim.train.finetune.api import finetune
from lowdim.train.finetune.recipe import Finetuning
from lowdim.train.pretrain.api import pretrain
from lowdim.train.pretrain.prepare import prepare


def shares(out: Path) -> list[float]:
    return [float(block.prores.a) for block in lowdim.load(out).model.layers]


def ramped(text: Path, out: Path, steps: int) -> Path:
    """Train with a ramp of eight steps."""
    return small.run(text, out, placement={"name": "prores", "steps": 4}, steps=steps, schedule={"warmup": 0}).out


def trained_on(command: str, model: Path, text: Path, home: Path) -> Path:
    """Train on for four steps that change no weight by much."""
    still: dict[str, Any] = {"steps": 4, "schedule": {"warmup": 0}, "optimizer": {"name": "adamw", "lr": 1e-9}}
    if command == "pretrain":
        return small.run(text, home / "on", model=str(model), data={"vocabulary": None}, **still).out
    rows = small.chats(home / "chats.jsonl")
    words = ["steps=4", "length=48", "batch=4", "device=cpu", "optimizer.lr=1e-9", "data.template=plain"]
    first = {"model": str(model), "data.source": str(rows), "method": "full"}
    return finetune(Finetuning.laid_over({}, first, words), out=home / "on").out


@pytest.mark.filterwarnings("ignore:the model has been trained")
def test_a_new_placement_is_measured_before_training_goes_on(
    base: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    settings: dict[str, Any] = {"model": str(base), "data": {"vocabulary": None}, "save_seconds": 0.0}
    recipe = small.recipe(text, placement={"name": "prores", "steps": 2}, **settings)
    made = pretrain(recipe, out=tmp_path / "out", announce=said.append)
    jump = made.facts["jump"]
    assert jump["before"] == json.loads((base / "pretraining.json").read_text())["validation"]["loss"]
    model = lowdim.load(base)
    ProRes(steps=2).apply_(model)
    prepared = prepare(recipe)
    batches = [prepared.held.micro([i]) for i in range(len(prepared.held))]
    with torch.no_grad():
        lost = [cross_entropy(model(b.ids).logits[0], b.targets[0], reduction="sum") for b in batches]
    assert jump["after"] == pytest.approx(float(sum(lost)) / sum(b.counted for b in batches), rel=1e-5)
    assert jump["after"] != jump["before"]
    assert said[-1].startswith("The new placement takes the validation loss from")
    assert f"{jump['before']:.4f} → {jump['after']:.4f}" in (render(made.facts, {}, []))
    small.interrupt(lambda: pretrain(recipe, out=tmp_path / "again"), 3, monkeypatch)
    assert pretrain(recipe, out=tmp_path / "again", resume=True).facts == made.facts
    assert "jump" not in small.run(text, tmp_path / "plain", **settings).facts


@pytest.mark.parametrize("command", ["pretrain", "finetune"])
@pytest.mark.parametrize(("steps", "before", "after"), [(8, [1.0, 1.0], [1.0, 1.0]), (3, [0.75, 0.375], [1.0, 0.875])])
def test_a_ramp_goes_on_where_it_was_left(
    steps: int, before: list[float], after: list[float], command: str, text: Path, tmp_path: Path
) -> None:
    model = ramped(text, tmp_path / "model", steps)
    assert shares(model) == before
    on = trained_on(command, model, text, tmp_path)
    assert shares(on) == after
    if after == [1.0, 1.0]:  # nothing of what it computes is lost, and it can be folded
        ids = torch.arange(8)[None]
        one, other = lowdim.load(model), lowdim.load(on)
        with torch.no_grad():
            assert torch.allclose(one(ids).logits, other(ids).logits, atol=1e-4)
        ProRes(steps=4).fold_(other)

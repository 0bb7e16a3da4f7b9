"""Recoveries of tiny models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tests.prune import tiny
from torch import Tensor

from lowdim.models.disk.masks import masks_in
from lowdim.pipeline.recover.api import RecoveryResult, recover
from lowdim.pipeline.recover.distill import DistillStage
from lowdim.pipeline.recover.recipe import Recovery

TEXT = tiny.tokens(samples=24, context=16)


def recipe(**settings: Any) -> Recovery:
    """Return a recipe for `TEXT`, in fp32, without evaluation: a few passes, at rates that move a tiny model."""
    base: dict[str, Any] = {
        "calibration": {"held": 0.25, "samples": 24},
        "evaluation": {"text": None},
        "compute": "float32",
        "batch_tokens": 64,
        "blocks": {"passes": 6, "lr": 3e-3},
        "distill": {"passes": 8, "lr": 3e-3, "sequences": 4},
    }
    for key, value in settings.items():
        base[key] = {**base.get(key, {}), **value} if isinstance(value, dict) else value
    return Recovery(**base)


def run(student: Path, out: Path, **settings: Any) -> RecoveryResult:
    return recover(student, recipe(**settings), out=out, calibration=TEXT)


def zeros(path: Path) -> dict[str, Tensor]:
    """Return which weights of the pruned layers are zero."""
    return {name: ~mask for name, mask in masks_in(path).items()}


def same_zeros(one: Path, other: Path) -> bool:
    first, second = zeros(one), zeros(other)
    return first.keys() == second.keys() and all(torch.equal(mask, second[name]) for name, mask in first.items())


def lose(replace: Callable[[Any, str, Any], object], what: str, step: int) -> None:
    """Let the loss of the second stage, or its gradient alone, be NaN in a step."""
    real = DistillStage._loss

    def loss(self: DistillStage, model: Any, place: int) -> Tensor:
        made = real(self, model, place)
        if not hasattr(self, "loop") or self.loop.step != step - 1:
            return made
        if what == "loss":
            return made * float("nan")
        made.register_hook(lambda gradient: gradient * float("nan"))
        return made

    replace(DistillStage, "_loss", loss)

"""GraNet by hand: pruning, then regeneration."""

from __future__ import annotations

import pytest
import torch
from tests.train.small import one_row, step_with

from lowdim.core.errors import RecipeError
from lowdim.train import ITOP, GradualMagnitude, GraNet


def test_granet_without_churn_is_gradual_pruning() -> None:
    torch.manual_seed(0)
    weights = torch.randn(60).tolist()
    runs = []
    for method in (GradualMagnitude(every=1, until=0.5), GraNet(every=1, until=0.5, drop=0.0, floor=0.0)):
        model, training = one_row(weights, [1] * 60, method, sparsity=0.75, total_steps=8)
        runs.append([step_with(model, training, [1.0] * 60) for _ in range(8)])
    assert runs[0] == runs[1]


def test_granet_regenerates_after_pruning_has_ended() -> None:
    weights = torch.linspace(1, 2, 40).tolist()
    method = GraNet(every=1, until=0.5, drop=0.5, floor=0.5)
    model, training = one_row(weights, [1] * 40, method, sparsity=0.75, total_steps=8)
    gradient = torch.linspace(2, 1, 40)
    kept = [sum(step_with(model, training, gradient.roll(7 * i).tolist())) for i in range(8)]
    assert kept == sorted(kept, reverse=True)
    assert kept[4:] == [10] * 4
    assert sum(training.history[-1]["grown"].values()) > 0


def test_granet_from_sparse_to_sparse_equals_itop_when_the_density_stands() -> None:
    torch.manual_seed(1)
    weights, mask = torch.randn(40).tolist(), [1] * 10 + [0] * 30
    settings = {"every": 1, "drop": 0.4, "floor": 0.1}
    runs = []
    for method in (GraNet(start=0.75, **settings), ITOP(grow="gradient", **settings)):  # type: ignore[arg-type]
        model, training = one_row(weights, mask, method, sparsity=0.75, total_steps=6)
        runs.append([step_with(model, training, torch.arange(40.0).tolist()) for _ in range(6)])
    assert runs[0] == runs[1]


def test_a_start_beyond_the_target() -> None:
    with pytest.raises(RecipeError, match="start must be at most"):
        GraNet(start=0.9).initial(0.5)

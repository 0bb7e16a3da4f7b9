"""GraNet by hand: pruning, then regeneration."""

from __future__ import annotations

import pytest
import torch
from tests.train.small import hold, one_row, step_with
from torch import nn

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


def test_nothing_moves_before_the_beginning() -> None:
    torch.manual_seed(0)
    method = GraNet(every=1, begin=0.25, until=0.75, drop=0.0, floor=0.0)
    model, training = one_row(torch.randn(64).tolist(), [1] * 64, method, sparsity=0.9, total_steps=8)
    kept = [sum(step_with(model, training, [1.0] * 64)) for _ in range(8)]
    cubic = [round(6 + 58 * (1 - k / 4) ** 3) for k in range(5)]  # over updates 2 to 6
    assert kept == [64, *cubic, 6, 6] == [64, 64, 30, 13, 7, 6, 6, 6]
    assert not GraNet(begin=0.25, every=10).due(20, 100)
    with pytest.raises(RecipeError, match=r"begin must be below until, 0\.5; got 0\.5"):
        GraNet(begin=0.5, until=0.5)
    GradualMagnitude(every=10, begin=0.45, until=0.5).check_length(100)
    with pytest.raises(RecipeError, match=r"no multiple of it lies between step 45 .* and 50"):
        GradualMagnitude(every=20, begin=0.45, until=0.5).check_length(100)


@pytest.mark.parametrize("start", [0.0, 0.5])
def test_the_uniform_form_spares_a_fifth_of_the_classifier(start: float) -> None:
    model = nn.Sequential(nn.Linear(40, 50), nn.ReLU(), nn.Linear(50, 20), nn.ReLU(), nn.Linear(20, 10))
    method = GraNet(every=1, until=0.5, start=start, scope="uniform", drop=0.0, floor=0.0)
    _, optimizer, training = hold(0.95, model, method=method, include=["*"], total_steps=8)
    counts = []
    for _ in range(8):
        model(torch.randn(4, 40)).sum().backward()
        optimizer.step()
        counts.append([layer.kept for layer in training.layers])
    size = 2000 + 1000 + 200
    assert sum(counts[-1]) == round(0.05 * size)
    assert counts[-1] == [80, 40, 40]  # 160 less a fifth of 200, two to one
    if start == 0.0:
        share = 1 - 0.95 * (1 - (3 / 4) ** 3)  # 45% zeros at the first update: every layer alike
        assert counts[0] == pytest.approx([2000 * share, 1000 * share, 200 * share], abs=1)


def test_the_uniform_form_without_a_sparse_classifier() -> None:
    model = nn.Sequential(nn.Linear(40, 50), nn.ReLU(), nn.Linear(50, 20), nn.ReLU(), nn.Linear(20, 10))
    method = GradualMagnitude(every=1, until=0.5, scope="uniform")
    _, optimizer, training = hold(0.9, model, method=method, total_steps=8)
    for _ in range(8):
        model(torch.randn(4, 40)).sum().backward()
        optimizer.step()
    assert [layer.kept for layer in training.layers] == [200, 100]

"""Layers to which no gradient came at a mask update: their masks stand still, once said and always recorded."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from tests.train.small import batch, mlp, sgd
from torch import Tensor, nn
from torch.nn import functional as F

from lowdim.core import registry
from lowdim.core.errors import RecipeError
from lowdim.train import RigL, SparseTraining, Static

SETTINGS: dict[str, dict[str, Any]] = {"chase": {"channels": 0.0}, "st-rnn": {"gates": 1}}
METHODS = {
    name: registry.find("training", name)
    for name in registry.names("training")
    if "every" in registry.find("training", name).settings() and name not in {"selfish-rnn", "ctre"}
}


class Experts(nn.Module):
    """Two experts of which one may get no tokens, or be passed over."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.experts = nn.ModuleList([nn.Linear(64, 32), nn.Linear(64, 32)])
        self.head = nn.Linear(32, 4)
        self.used = [0, 1]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.stack([self.experts[n](x) for n in self.used]).sum(0).relu())
        return out


def run(model: Experts, method: Any, steps: int = 8, to_none: bool = True, frozen: bool = False) -> SparseTraining:
    optimizer = sgd(model)
    training = SparseTraining(model, optimizer, sparsity=0.7, method=method, total_steps=steps)
    for step in range(steps):
        model.used = [0, 1] if step < steps // 2 - 1 or frozen else [0]
        if frozen and step == steps // 2 - 1:
            model.experts[1].requires_grad_(False)
        x, y = batch(step)
        F.cross_entropy(model(x.flatten(1)), y).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=to_none)
    return training


@pytest.mark.parametrize("frozen", [False, True], ids=["without-tokens", "frozen"])
@pytest.mark.parametrize("name", METHODS)
def test_the_others_move_on(name: str, frozen: bool) -> None:
    method = METHODS[name].load()(every=2, **SETTINGS.get(name, {}))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        training = run(Experts(), method, frozen=frozen)
    told = [str(w.message) for w in said if "no gradient came to" in str(w.message)]
    assert len(told) == (1 if method.wants_gradient or not method.changes_density else 0), told
    assert all("experts.1.weight" in text and "experts.0" not in text for text in told)
    after = [entry for entry in training.history if entry["step"] >= 4]
    assert any(entry["dropped"]["experts.0.weight"] for entry in after) or not after
    for entry in after if told else []:
        assert entry["idle"] == ["experts.1.weight"]
        assert not entry["grown"]["experts.1.weight"]
        assert method.changes_density or not entry["dropped"]["experts.1.weight"]
    assert training.sparsity() == pytest.approx(0.7, abs=1e-3)
    assert all("idle" not in entry for entry in training.history if entry["step"] < 4)


@pytest.mark.parametrize("order", ["replace_step", "after_step"])
def test_a_gradient_of_zeros_is_none_and_recorded(order: Any) -> None:
    training = run(Experts(), RigL(every=2, until=1.0, order=order), to_none=False)
    assert [entry.get("idle") for entry in training.history] == [None, ["experts.1.weight"], ["experts.1.weight"]]


def test_a_step_without_any_gradient_moves_nothing() -> None:
    model = mlp(64, 32, 4)
    training = SparseTraining(model, sgd(model), sparsity=0.7, method=RigL(every=1), total_steps=8)
    masks = training.masks
    with pytest.warns(UserWarning, match="no gradient came to"):
        training.optimizer.step()
    training.optimizer.step()
    assert training.masks == masks
    assert [entry["skipped"] for entry in training.history] == ["no layer has a gradient"] * 2


def test_a_shake_passes_over_what_has_no_gradient() -> None:
    model = Experts()
    model.used = [0]
    training = SparseTraining(model, sgd(model), sparsity=0.7, method=Static())
    training.shake(0.5)
    x, y = batch(0)
    F.cross_entropy(model(x.flatten(1)), y).backward()
    with pytest.warns(UserWarning, match="no gradient came to"):
        training.optimizer.step()
    assert training.history[0]["dropped"]["experts.0.weight"] > 0
    assert training.history[0]["dropped"]["experts.1.weight"] == 0


def test_a_schedule_that_never_moves_a_mask_is_refused_or_said() -> None:
    for name, found in METHODS.items():
        method = found.load()(every=50, **SETTINGS.get(name, {}))
        model = Experts()
        if method.changes_density and name != "chase":
            with pytest.raises(RecipeError, match="would never prune: every is 50"):
                SparseTraining(model, sgd(model), sparsity=0.7, method=method, total_steps=20)
        elif name != "chase":
            training = SparseTraining(model, sgd(model), sparsity=0.7, method=method, total_steps=20)
            with pytest.warns(UserWarning, match="would never move a mask: every is 50"):
                training.finish()

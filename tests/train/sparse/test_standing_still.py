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
from lowdim.nn.csr.swap import sparse_
from lowdim.train import RigL, SparseTraining, Static

SETTINGS: dict[str, dict[str, Any]] = {"chase": {"channels": 0.0}, "st-rnn": {"gates": 1}}
METHODS = {
    name: registry.find("training", name)
    for name in registry.names("training")
    if "every" in registry.find("training", name).settings() and name not in {"selfish-rnn", "ctre"}
}
TRULY = [name for name in METHODS if name != "chase"]
"""Those that train layers whose weight is not held dense."""


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


def truly_sparse(model: Experts, method: Any, steps: int) -> Experts:
    """Return the network with experts that hold what a method keeps at first, and nothing else."""
    first = SparseTraining(model, sgd(model), sparsity=0.7, method=method, total_steps=steps)
    first.remove()
    fresh = Experts()
    sparse_(fresh, first.masks)
    return fresh


def run(
    model: Experts, method: Any, steps: int = 8, to_none: bool = True, frozen: bool = False, executor: str = "masked"
) -> SparseTraining:
    sparsity: float | None = 0.7
    if executor == "csr":
        model = truly_sparse(model, method, steps)
        sparsity = 0.7 if method.changes_density else None
    optimizer = sgd(model)
    training = SparseTraining(model, optimizer, sparsity=sparsity, method=method, total_steps=steps)
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
@pytest.mark.parametrize(("name", "executor"), [(n, "masked") for n in METHODS] + [(n, "csr") for n in TRULY])
def test_the_others_move_on(name: str, executor: str, frozen: bool) -> None:
    method = METHODS[name].load()(every=2, **SETTINGS.get(name, {}))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        training = run(Experts(), method, frozen=frozen, executor=executor)
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


@pytest.mark.filterwarnings("ignore:.*no gradient came to")
@pytest.mark.parametrize("way", ["none", "zeros", "frozen"])
@pytest.mark.parametrize("name", TRULY)
def test_both_executors_stand_still_alike(name: str, way: str) -> None:
    method = METHODS[name].load()(every=2, **SETTINGS.get(name, {}))
    both = [run(Experts(), method, 8, way != "zeros", way == "frozen", executor) for executor in ("masked", "csr")]
    assert both[0].history == both[1].history
    assert both[0].masks == both[1].masks


@pytest.mark.parametrize("executor", ["masked", "csr"])
@pytest.mark.parametrize("order", ["replace_step", "after_step"])
def test_a_gradient_of_zeros_is_none_and_recorded(order: Any, executor: str) -> None:
    training = run(Experts(), RigL(every=2, until=1.0, order=order), to_none=False, executor=executor)
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


@pytest.mark.parametrize("executor", ["masked", "csr"])
@pytest.mark.parametrize("zeros", [False, True])
def test_a_shake_passes_over_what_has_no_gradient(executor: str, zeros: bool) -> None:
    model = Experts() if executor == "masked" else truly_sparse(Experts(), Static(), 1)
    model.used = [0]
    training = SparseTraining(
        model, sgd(model), sparsity=0.7 if executor == "masked" else None, method=Static(), total_steps=1
    )
    training.shake(0.5)
    x, y = batch(0)
    F.cross_entropy(model(x.flatten(1)), y).backward()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        if zeros:
            for parameter in model.experts[1].parameters():
                parameter.grad = torch.zeros_like(parameter)
        training.optimizer.step()
    assert bool([w for w in said if "no gradient came to" in str(w.message)]) != zeros
    assert training.history[0]["dropped"]["experts.0.weight"] > 0
    assert training.history[0]["dropped"]["experts.1.weight"] == 0


def test_a_schedule_that_never_moves_a_mask_is_refused_or_said() -> None:
    for name, found in METHODS.items():
        method = found.load()(every=50, **SETTINGS.get(name, {}))
        model = Experts()
        if method.changes_density:
            with pytest.raises(
                RecipeError, match=rf"{type(method).__name__} would never .*: every is 50, but .* (20|14)"
            ):
                SparseTraining(model, sgd(model), sparsity=0.7, method=method, total_steps=20)
        else:
            training = SparseTraining(model, sgd(model), sparsity=0.7, method=method, total_steps=20)
            with pytest.warns(UserWarning, match="would never move a mask: every is 50"):
                training.finish()

"""Groups of weights that an optimizer is given after it was made, as gradual unfreezing does."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.train.optimizers.projections import data, loss, net
from torch import nn

from lowdim.core.errors import LowdimError
from lowdim.train.loop import Loop
from lowdim.train.optimizers.apollo import APOLLO
from lowdim.train.optimizers.entries import Entries
from lowdim.train.optimizers.galore import GaLore
from lowdim.train.optimizers.lift import LIFT
from lowdim.train.optimizers.muon import Muon
from lowdim.train.optimizers.q_galore import QGaLore

KINDS: dict[str, Callable[[nn.Module], Any]] = {
    "galore": GaLore(rank=2).build,
    "galore, layerwise": GaLore(rank=2, layerwise=True).build,
    "apollo, layerwise": APOLLO(rank=2, layerwise=True).build,
    "q-galore": QGaLore(rank=2, inner="adamw").build,
    "lift": lambda model: Entries([p for p in model.parameters() if p.dim() == 2], LIFT(rank=2, budget=1)),
}
OPTIMIZERS = pytest.mark.parametrize("kind", KINDS)


def begun(kind: str, late: bool = True) -> tuple[nn.Sequential, nn.Linear, Any]:
    """Return a network whose last layer joins the optimizer later, if at all."""
    model, last = net(), nn.Linear(4, 4, bias=False)
    optimizer = KINDS[kind](model)
    model.append(last)
    if late:
        optimizer.add_param_group({"params": last.parameters(), "lr": 0.02})
    return model, last, optimizer


@OPTIMIZERS
def test_they_train_and_go_on_from_a_state(kind: str) -> None:
    model, last, optimizer = begun(kind)
    before = last.weight.detach().clone()
    loop = Loop(model, optimizer, loss=loss)
    loop.run(map(data, range(3)))
    assert not torch.equal(last.weight, before)
    state = copy.deepcopy(loop.state_dict())
    loop.run([data(3)])
    again, _, other = begun(kind)
    resumed = Loop(again, other, loss=loss)
    resumed.load_state_dict(state)
    resumed.run([data(3)])
    for one, two in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(torch.as_tensor(one.detach() + 0), torch.as_tensor(two.detach() + 0))


@OPTIMIZERS
def test_a_loop_with_a_schedule_scales_their_rate_too(kind: str) -> None:
    model, last, optimizer = begun(kind, late=False)
    loop = Loop(model, optimizer, loss=loss, schedule=lambda step: 1 / (step + 1))
    loop.run(map(data, range(2)))
    last.weight.grad = None
    optimizer.add_param_group({"params": last.parameters(), "lr": 0.02})
    before = last.weight.detach().clone()
    loop.run(map(data, range(2, 4)))
    assert optimizer.param_groups[-1]["lr"] == 0.02 / 4
    assert not torch.equal(last.weight, before)


def test_matrices_that_have_no_entries_to_choose_are_refused_and_left_out() -> None:
    _, _, optimizer = begun("lift", late=False)
    for odd, said in ((nn.Parameter(torch.ones(3)), "has the shape"), (nn.Parameter(torch.ones(1, 1)), "budget=1")):
        with pytest.raises(LowdimError, match=said):
            optimizer.add_param_group({"params": [odd]})
        assert len(optimizer.param_groups) == 1


def test_joined_optimizers_do_not_know_whose_they_are() -> None:
    model = net()
    optimizer = Muon().build(model)
    with pytest.raises(LowdimError, match="which of Muon and AdamW is to train a new group is not known"):
        optimizer.add_param_group({"params": nn.Linear(4, 4).parameters()})
    loss(model, data(0)).backward()
    optimizer.step()


@pytest.mark.parametrize("kind", ["galore, layerwise", "apollo, layerwise"])
def test_weights_that_are_frozen_at_first_train_on_the_way_back_too(kind: str) -> None:
    model = net()
    rule: Any = {"galore": GaLore, "apollo": APOLLO}[kind.partition(",")[0]](rank=2, layerwise=True)
    inner = rule.build(model)
    frozen = nn.Linear(4, 4)
    frozen.requires_grad_(False)
    model.append(frozen)
    inner.add_param_group({"params": frozen.parameters()})
    before = frozen.weight.clone()
    loop = Loop(model, inner, loss=loss)
    loop.run([data(0)])
    assert torch.equal(frozen.weight, before) and not frozen.weight.requires_grad
    frozen.requires_grad_(True)
    loop.run([data(1)])
    assert not torch.equal(frozen.weight, before) and frozen.weight.grad is None

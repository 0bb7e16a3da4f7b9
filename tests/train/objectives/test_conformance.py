"""Every registered objective: losses by sample, gradients, memory that brings a run back, batches of one class."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests.train.objectives.crowds import batch, crowd
from torch import nn

from lowdim.core import registry
from lowdim.core.recipe import families
from lowdim.train.loop import Loop
from lowdim.train.objectives.base import Objective
from lowdim.train.samplers.aim import Aim
from lowdim.train.samplers.base import Sampler
from lowdim.train.samplers.dynamic_pruning import DynamicPruning

NAMES = [name for name in registry.names("objective") if "pairs" not in families.build("objective", name).requires]


def objective(name: str, **settings: Any) -> Objective:
    found: Objective = families.build("objective", {"name": name, **settings})
    return found


def shuffled() -> Sampler:
    found: Sampler = families.build("sampler", "shuffled")
    return found


def net(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


def trained(aim: Aim, model: nn.Module, epochs: range, optimizer: torch.optim.Optimizer) -> None:
    loop = Loop(model, optimizer, loss=aim.loss)
    for epoch in epochs:
        loop.run(aim.batches(epoch, model, 8))


@pytest.mark.parametrize("name", NAMES)
def test_there_is_a_loss_for_every_sample_with_a_gradient(name: str) -> None:
    samples, chosen, model = crowd(), objective(name), net()
    found = batch(samples, list(range(10)), chosen.begin(samples))
    outputs = chosen.forward(model, found)
    losses = chosen.loss(outputs, found)
    assert losses.shape == (10,)
    assert bool(losses.isfinite().all())
    losses.mean().backward()
    assert all(weight.grad is not None for weight in model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_of_one_class_is_as_good_as_any(name: str) -> None:
    samples, chosen, model = crowd(), objective(name), net()
    one = batch(samples, (samples.y == 1).nonzero().flatten()[:6], chosen.begin(samples))
    assert bool(chosen.loss(chosen.forward(model, one), one).isfinite().all())


@pytest.mark.parametrize("name", NAMES)
def test_the_score_of_data_pruning_is_the_loss_of_the_sample(name: str) -> None:
    by = {"by": "loss"} if "by" in registry.find("objective", name).settings() else {}
    samples, model, pruning = crowd(), net(), DynamicPruning(keep=0.5)
    aim = Aim(objective(name, **by), pruning, samples, epochs=3)
    for found in aim.batches(0, model, 16):
        held = found._replace(memory=copy.deepcopy(found.memory))
        outputs = aim.objective.forward(copy.deepcopy(model), held)
        aim.loss(model, found).backward()
        losses = nn.functional.cross_entropy(outputs.detach(), found.y, reduction="none")
        assert torch.equal(aim.state_dict()["sampler"]["scores"][found.rows], losses)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_that_is_taken_up_again_ends_with_the_same_bytes(name: str) -> None:
    samples = crowd()
    whole, halves = net(), net()
    for model, parts in ((whole, [range(4)]), (halves, [range(2), range(2, 4)])):
        optimizer, state = torch.optim.SGD(model.parameters(), lr=0.1), None
        for part in parts:
            aim = Aim(objective(name), shuffled(), samples, epochs=4)
            if state is not None:
                aim.load_state_dict(state)
            trained(aim, model, part, optimizer)
            state = copy.deepcopy(aim.state_dict())
    for one, other in zip(whole.state_dict().values(), halves.state_dict().values(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", NAMES)
def test_settings_come_back_from_their_description(name: str) -> None:
    chosen = objective(name)
    assert families.build("objective", families.describe("objective", chosen)) == chosen


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    for name in NAMES:
        aim, model = Aim(objective(name), shuffled(), crowd()), net()
        trained(aim, model, range(1), torch.optim.SGD(model.parameters(), lr=0.1))
    assert torch.equal(before, torch.get_rng_state())

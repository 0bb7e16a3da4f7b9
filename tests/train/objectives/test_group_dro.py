"""Group-DRO: the weights of groups by hand, absent groups, the adjustment, and that the worst group gains."""

from __future__ import annotations

import math

import pytest
import torch
from tests.train.objectives.crowds import batch, crowd, grouped
from torch import nn

from lowdim.train.objectives.base import Drawn
from lowdim.train.objectives.erm import ERM
from lowdim.train.objectives.group_dro import GroupDRO
from lowdim.train.samplers.aim import Aim
from lowdim.train.samplers.shuffled import Shuffled
from lowdim.train.samplers.weighted import WeightedSampler


def logits_of(loss: float) -> list[float]:
    """Two logits at which the first class has this cross entropy."""
    return [0.0, math.log(math.exp(loss) - 1)]


def test_one_step_by_hand() -> None:
    samples = grouped([0, 0, 1], ("a", "b"))
    dro = GroupDRO(step=math.log(2))
    memory = dro.begin(samples)
    found = Drawn(samples.x, samples.y, torch.arange(3), samples.index, memory)
    outputs = torch.tensor([logits_of(0.5), logits_of(1.5), logits_of(2.0)], dtype=torch.float64)
    losses = dro.weighed(dro.loss(outputs, found), found)
    # L = (1, 2); q = (1/2 * 2^1, 1/2 * 2^2) / 3 = (1/3, 2/3)
    assert memory["q"].tolist() == pytest.approx([1 / 3, 2 / 3])
    assert float(losses.mean()) == pytest.approx(1 / 3 * 1 + 2 / 3 * 2)


def test_a_group_that_is_not_in_the_batch_adds_nothing_and_one_without_samples_weighs_nothing() -> None:
    samples = grouped([0, 0, 1], ("a", "b", "empty"))
    dro = GroupDRO(step=0.0)
    memory = dro.begin(samples)
    assert memory["q"].tolist() == [0.5, 0.5, 0.0]
    found = Drawn(samples.x[:2], samples.y[:2], torch.arange(2), samples.index[:2], memory)
    outputs = torch.tensor([logits_of(1.0), logits_of(3.0)], dtype=torch.float64)
    losses = dro.weighed(dro.loss(outputs, found), found)
    assert float(losses.mean()) == pytest.approx(0.5 * 2)


def test_the_adjustment_favours_small_groups() -> None:
    samples = grouped([0] * 9 + [1], ("a", "b"))
    dro = GroupDRO(step=1.0, adjust=3.0)
    memory = dro.begin(samples)
    found = Drawn(samples.x, samples.y, torch.arange(10), samples.index, memory)
    dro.weighed(dro.loss(torch.zeros(10, 2), found), found)
    assert float(memory["q"][1] / memory["q"][0]) == pytest.approx(math.exp(3 - 1))  # 3/sqrt(1) - 3/sqrt(9)


def test_large_losses_do_not_overflow() -> None:
    samples = grouped([0, 1], ("a", "b"))
    dro = GroupDRO(step=1.0)
    memory = dro.begin(samples)
    found = Drawn(samples.x, samples.y, torch.arange(2), samples.index, memory)
    losses = dro.weighed(dro.loss(torch.tensor([[0.0, 1e6], [0.0, 0.0]]), found), found)
    assert bool(losses.isfinite().all())
    assert memory["q"].tolist() == [1.0, 0.0]


def test_the_worst_group_gains_over_erm() -> None:
    samples = crowd(count=400, conflicting=12)

    def worst(aim: Aim) -> float:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            net = nn.Linear(2, 2)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for epoch in range(8):
            for found in aim.batches(epoch, net, 50):
                optimizer.zero_grad()
                aim.loss(net, found).backward()
                optimizer.step()
        with torch.no_grad():
            losses = ERM().loss(net(samples.x), batch(samples, torch.arange(400)))
        return max(float(losses[samples.index == group].mean()) for group in range(4))

    dro = worst(Aim(GroupDRO(step=0.1), WeightedSampler(), samples))
    assert dro < 0.7 * worst(Aim(ERM(), Shuffled(), samples))

"""Weights of samples: group reweighting, REST, JTT; by loss and by sampling, alone and over another objective."""

from __future__ import annotations

import pytest
import torch
from tests.train.objectives.crowds import batch, crowd, grouped
from torch import nn

from lowdim.core.errors import RecipeError
from lowdim.data.errors import DataError
from lowdim.data.select.groups import Groups
from lowdim.train.objectives.adversarial import Adversarial
from lowdim.train.objectives.base import Samples
from lowdim.train.objectives.erm import ERM
from lowdim.train.objectives.group_weights import GroupWeights
from lowdim.train.objectives.jtt import JTT
from lowdim.train.objectives.rest import REST
from lowdim.train.objectives.weighted import By
from lowdim.train.samplers.aim import Aim
from lowdim.train.samplers.ranked import RankedShare
from lowdim.train.samplers.shuffled import Shuffled
from lowdim.train.samplers.weighted import WeightedSampler


def test_groups_weigh_equally() -> None:
    weights = GroupWeights().weights(grouped([0] * 6 + [1] * 3 + [3], ("a", "b", "none", "c")))
    assert [float(weights[part].sum()) for part in (slice(0, 6), slice(6, 9), slice(9, 10))] == pytest.approx(
        [10 / 3] * 3
    )
    assert float(weights.mean()) == pytest.approx(1)


def test_rest_draws_0287_from_50_of_10000_at_80() -> None:
    conflicting = torch.arange(10_000) < 50
    groups = Groups(conflicting.long(), ("aligned", "conflicting"))
    y = torch.zeros(10_000, dtype=torch.int64)
    samples = Samples(torch.zeros(10_000, 1), y, 1, groups=groups, conflicting=conflicting)
    weights = REST(up=80).weights(samples)
    assert float(weights[:50].sum() / weights.sum()) == pytest.approx(80 * 50 / (80 * 50 + 9950))
    assert round(float(weights[:50].sum() / weights.sum()), 3) == 0.287
    aim = Aim(REST(up=80), Shuffled(), samples)
    drawn = torch.cat([aim.order(epoch, nn.Identity()) for epoch in range(20)])
    assert len(drawn) == 200_000
    # 200,000 draws: a deviation of 0.001, five of which are allowed
    assert float(conflicting[drawn].double().mean()) == pytest.approx(0.2867, abs=0.005)


def value(loss: torch.Tensor) -> float:
    return float(loss.detach())


@pytest.mark.parametrize("by", ["loss", "sampling"])
def test_at_weight_one_rest_is_erm(by: By) -> None:
    samples, net = crowd(), nn.Linear(2, 2)
    one = Aim(REST(up=1.0, by=by), Shuffled(), samples)
    plain = Aim(ERM(), Shuffled(), samples)
    for a, b in zip(one.batches(0, net, 8), plain.batches(0, net, 8), strict=True):
        assert torch.equal(a.rows, b.rows)
        assert value(one.loss(net, a)) == value(plain.loss(net, b))


def test_the_weight_is_read() -> None:
    """The authors' code parses the weight of its name and never reads it."""
    samples, net = crowd(), nn.Linear(2, 2)
    every = batch(samples, torch.arange(40))
    losses = [value(Aim(REST(up=up, by="loss"), Shuffled(), samples).loss(net, every)) for up in (1.0, 5.0)]
    assert samples.conflicting is not None
    weight = torch.where(samples.conflicting, 5.0, 1.0)
    assert losses[1] == pytest.approx(
        value((weight * ERM().loss(net(samples.x), every)).sum() / weight.sum()), rel=1e-5
    )
    assert losses[0] != losses[1]


def test_sampling_and_weighing_have_one_expectation() -> None:
    samples, net = crowd(), nn.Linear(2, 2)
    every = batch(samples, torch.arange(40))
    by_loss = Aim(REST(up=9.0, by="loss"), Shuffled(), samples).loss(net, every)
    aim = Aim(REST(up=9.0), Shuffled(), samples)
    rows = torch.cat([aim.order(epoch, net) for epoch in range(500)])
    drawn = ERM().loss(net(samples.x), every)[rows].mean()
    assert value(drawn) == pytest.approx(value(by_loss), rel=0.05)


def test_jtt_draws_errors_up_times_as_often() -> None:
    samples = crowd(count=40, conflicting=4)
    weights = JTT(up=9).weights(samples)
    assert float(weights[samples.wrong].sum() / weights.sum()) == pytest.approx(36 / 72)
    assert JTT(epochs=3).early == 3
    assert ERM().early == 0


def test_weights_lie_over_other_losses() -> None:
    samples = crowd()
    over = REST(over={"name": "adversarial", "steps": 2}, by="loss")
    assert over.passes == Adversarial(steps=2).passes
    net = nn.Linear(2, 2)
    found = batch(samples, torch.arange(40), over.begin(samples))
    under = batch(samples, torch.arange(40), Adversarial(steps=2).begin(samples))
    assert torch.equal(
        over.loss(over.forward(net, found), found),
        Adversarial().loss(Adversarial(steps=2).forward(net, under), under),
    )


def test_what_cannot_be_weighed_is_refused() -> None:
    nothing = Samples(torch.zeros(2, 1), torch.tensor([0, 1]), 2, conflicting=torch.zeros(2, dtype=torch.bool))
    with pytest.raises(RecipeError, match="none does"):
        REST().weights(nothing)
    right = Samples(torch.zeros(2, 1), torch.tensor([0, 1]), 2, wrong=torch.zeros(2, dtype=torch.bool))
    with pytest.raises(RecipeError, match=r"made none after 1 epochs. Lower objective.epochs"):
        JTT().weights(right)
    with pytest.raises(RecipeError, match="'jtt' weighs or pairs samples itself"):
        REST(over="jtt")
    with pytest.raises(RecipeError, match="up must be above 0"):
        REST(up=0.0)
    with pytest.raises(RecipeError, match="so does the sampler"):
        Aim(REST(), WeightedSampler(), crowd())
    Aim(REST(by="loss"), WeightedSampler(), crowd())


def test_samples_of_which_too_little_is_known_are_refused() -> None:
    bare = Samples(torch.zeros(2, 1), torch.tensor([0, 1]), 2)
    with pytest.raises(RecipeError, match=r"GroupWeights needs groups of the samples, and Samples.groups is None"):
        Aim(GroupWeights(), Shuffled(), bare)
    with pytest.raises(RecipeError, match="WeightedSampler needs groups"):
        Aim(ERM(), WeightedSampler(), bare)
    with pytest.raises(RecipeError, match="RankedShare needs ranks"):
        Aim(ERM(), RankedShare(), bare)
    with pytest.raises(RecipeError, match=r"give Samples.wrong"):
        Aim(JTT(), Shuffled(), bare)
    only = Samples(torch.zeros(2, 1), torch.tensor([0, 1]), 2, groups=Groups(torch.tensor([0, 1]), ("a", "b")))
    with pytest.raises(RecipeError, match=r"give Samples.conflicting"):
        Aim(REST(), Shuffled(), only)


def test_groups_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DataError, match="sample 1 has group 2, and groups run from 0 to 1"):
        Groups(torch.tensor([0, 2]), ("a", "b"))
    with pytest.raises(DataError, match="3 groups or ranks were given for 2 samples"):
        Samples(torch.zeros(2, 1), torch.tensor([0, 1]), 2, groups=Groups(torch.tensor([0, 1, 1]), ("a", "b")))

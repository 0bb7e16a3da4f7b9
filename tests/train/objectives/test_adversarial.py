"""Adversarial training: the box, the range, a step by hand, and what the ascent leaves alone."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.train.objectives.crowds import batch, crowd
from torch import nn

from lowdim.core.errors import RecipeError
from lowdim.train.objectives.adversarial import Adversarial
from lowdim.train.objectives.base import Samples


def line(weight: float) -> nn.Module:
    """Class 1 where weight * x is above 0."""
    net = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[0.0], [weight]]))
    return net


def test_steps_of_sign_ascent_by_hand() -> None:
    chosen = Adversarial(radius=0.1, stride=0.03, steps=2)
    x, y = torch.tensor([[0.5], [0.95], [0.02]]), torch.tensor([0, 0, 1])
    moved = chosen.worst(line(3.0), x, y, (0.0, 1.0), 2, torch.Generator().manual_seed(0))
    drawn = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    begun = (x + 0.1 * drawn).clamp(0, 1)
    # class 0 is hurt by a larger x, class 1 by a smaller one
    want = begun + 2 * 0.03 * torch.tensor([[1.0], [1.0], [-1.0]])
    want = torch.minimum(torch.maximum(want, x - 0.1), x + 0.1).clamp(0, 1)
    assert torch.allclose(moved, want, atol=1e-6)
    assert bool(((moved - x).abs() <= 0.1 + 1e-6).all())


def test_radius_is_a_share_of_the_range_of_the_data() -> None:
    chosen = Adversarial(radius=0.1, stride=0.1, steps=3)
    samples = Samples(torch.tensor([[-2.0], [2.0]]), torch.tensor([0, 1]), 2)
    memory = chosen.begin(samples)
    assert (memory["low"], memory["high"]) == (-2.0, 2.0)
    x = torch.tensor([[0.0]])
    moved = chosen.worst(line(1.0), x, torch.tensor([0]), (-2.0, 2.0), 3, torch.Generator())
    assert float(moved) == pytest.approx(0.4)


def test_the_ascent_moves_no_weight_no_running_mean_and_leaves_no_gradient() -> None:
    net = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    before = copy.deepcopy(net.state_dict())
    samples, chosen = crowd(), Adversarial(steps=3)
    found = batch(samples, list(range(20)), chosen.begin(samples))
    memory = found.memory
    draw = torch.Generator().manual_seed(0)
    moved = chosen.worst(net, found.x, found.y, (memory["low"], memory["high"]), 3, draw)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(weight.grad is None for weight in net.parameters())
    assert net.training
    assert not moved.requires_grad


def test_it_finds_worse_samples_and_says_how_many_hold() -> None:
    net, samples = line(10.0), Samples(torch.linspace(-1, 1, 41).unsqueeze(1), (torch.arange(41) > 20).long(), 2)
    chosen = Adversarial(radius=0.1, stride=0.05, steps=5, test_steps=5)
    clean = float((net(samples.x).argmax(1) == samples.y).double().mean())
    found = chosen.examine(net, samples.x, samples.y, 0)["robust_accuracy"]
    # those within 0.2 of 0 turn: 4 below (0 itself is class 0 and turns) and 4 above
    assert clean == 1.0
    assert found == pytest.approx((41 - 9) / 41, abs=1 / 41)
    assert Adversarial(test_steps=0).examine(net, samples.x, samples.y, 0) == {}


def test_words_are_refused() -> None:
    with pytest.raises(RecipeError, match="moves numbers"):
        Adversarial().check_kind("text")
    Adversarial().check_kind("image")

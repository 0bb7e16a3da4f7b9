"""Measures by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lowdim.data.raw import Split
from lowdim.train.compare import measure


def test_accuracy_and_loss_of_a_network_known_by_heart() -> None:
    net = nn.Linear(2, 2, bias=False)
    net.weight.data = torch.eye(2)
    split = Split(torch.tensor([[1.0, 0.0], [0.0, 1.0], [3.0, 0.0]]), torch.tensor([0, 0, 0]))
    found = measure.answer(net, split)
    e = torch.e
    expected = torch.tensor([1 / (1 + e**-1), 1 / (1 + e), 1 / (1 + e**-3)]).log().neg()
    assert found.hits.tolist() == [True, False, True]
    assert torch.allclose(found.losses, expected)
    assert found.accuracy == pytest.approx(2 / 3)
    assert found.loss == pytest.approx(float(expected.mean()))


def test_measuring_changes_nothing() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    before = {k: v.clone() for k, v in net.state_dict().items()}
    split = Split(torch.randn(10, 4, generator=torch.Generator().manual_seed(0)), torch.zeros(10, dtype=torch.int64))
    assert torch.equal(measure.answer(net, split).losses, measure.answer(net, split).losses)
    assert net.training
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_noise_depends_on_the_seed_and_spares_words() -> None:
    split = Split(torch.zeros(100, 50), torch.zeros(100, dtype=torch.int64))
    one, two, other = (measure.noisy(split, seed).x for seed in (0, 0, 1))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert float(one.std()) == pytest.approx(0.5, abs=0.02)
    words = Split(torch.ones(3, 4, dtype=torch.int64), torch.zeros(3, dtype=torch.int64))
    assert measure.noisy(words, 0) is words


def test_thirds_are_those_of_all_networks() -> None:
    losses = {
        "a": torch.tensor([0.0, 9.0, 1.0, 0.0, 8.0, 2.0]),
        "b": torch.tensor([1.0, 9.0, 3.0, 0.0, 0.0, 2.0]),
    }
    hits = {"a": torch.tensor([1, 0, 1, 1, 0, 1]).bool(), "b": torch.tensor([1, 0, 0, 1, 1, 1]).bool()}
    # means: .5 9 2 0 4 2 -> order 3 0 | 2 5 | 4 1
    assert measure.by_difficulty(losses, hits) == {"a": [1.0, 1.0, 0.0], "b": [1.0, 0.5, 0.5]}


def test_examples_of_no_class_keep_every_feature_and_lose_their_company() -> None:
    x = torch.arange(600.0).reshape(100, 1, 2, 3)
    split = Split(x, torch.zeros(100, dtype=torch.long))
    one, two = measure.unlike(split, 0).x, measure.unlike(split, 0).x
    assert torch.equal(one, two)
    assert torch.equal(one.sort(0).values, x)
    rows = one.flatten(1) - torch.arange(6.0)
    assert not bool((rows == rows[:, :1]).all(1).any())


def test_auroc_by_hand() -> None:
    assert measure.auroc(torch.tensor([0.9, 0.8]), torch.tensor([0.1, 0.2])) == 1.0
    assert measure.auroc(torch.tensor([0.5]), torch.tensor([0.5, 0.5])) == 0.5
    assert measure.auroc(torch.tensor([0.3]), torch.tensor([0.1, 0.2, 0.3, 0.4])) == 2.5 / 4

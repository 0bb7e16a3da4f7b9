"""Selfish-RNN: the gates of a recurrent matrix compete."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tests.train.recurrent import X, lstm, per_gate, train
from torch import nn

from lowdim.core.errors import RecipeError
from lowdim.train import SelfishRNN, SparseTraining


def test_gates_compete_and_the_matrix_keeps_its_number() -> None:
    net = lstm()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    training = SparseTraining(
        net,
        optimizer,
        sparsity=0.5,
        allocation="uniform",
        method=SelfishRNN(every=1, drop=0.5),
        total_steps=4,
    )
    first = {name: mask.clone() for name, mask in training.masks.items()}
    assert set(first) == {f"weight_{part}_l{layer}" for part in ("ih", "hh") for layer in (0, 1)}
    with torch.no_grad():
        net.weight_hh_l0[:12].mul_(1e-3)  # the input gate loses against the other three
    for _ in range(3):
        net(X)[0].sum().backward()
        optimizer.step()
    for name, mask in training.masks.items():
        assert int(mask.sum()) == int(first[name].sum()) == mask.numel() // 2
    before, after = per_gate(first["weight_hh_l0"]), per_gate(training.masks["weight_hh_l0"])
    assert after[0] < before[0]
    assert sum(after) == sum(before)


def test_selfish_moves_the_share_of_its_schedule() -> None:
    training = train(lstm(), SelfishRNN(every=2, drop=0.8), 10, sparsity=0.75, allocation="uniform")
    for event in training.history:
        share = 0.005 + (0.8 - 0.005) / 2 * (1 + math.cos(math.pi * event["step"] / 10))
        for name, kept in event["kept"].items():
            bound = math.ceil(share * kept)  # those drawn again right away do not count as dropped
            assert event["dropped"][name] == event["grown"][name] <= bound
    assert [event["step"] for event in training.history] == [2, 4, 6, 8, 10]
    assert training.explored() > 0.25


def test_selfish_drops_the_smallest_of_the_stacked_matrix() -> None:
    net = nn.LSTM(4, 2, bias=False)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    training = SparseTraining(
        net,
        optimizer,
        sparsity=0.0,
        include=["weight_ih_l0"],
        method=SelfishRNN(every=1, until=0.5),
        total_steps=8,
    )
    with torch.no_grad():
        net.weight_ih_l0.copy_(torch.arange(1.0, 33.0).reshape(8, 4))
    training.shake(0.25)
    net(torch.ones(1, 4))[0].sum().backward()
    optimizer.step()
    # nothing was off, so the eight that go come back at once: they keep their values
    assert int(training.masks["weight_ih_l0"].sum()) == 32
    assert torch.equal(net.weight_ih_l0, torch.arange(1.0, 33.0).reshape(8, 4))


@pytest.mark.parametrize("cell", [nn.GRU, nn.RNN])
def test_other_cells_are_stacked_matrices_too(cell: Any) -> None:
    training = train(cell(8, 12, batch_first=True), SelfishRNN(every=1), 3, sparsity=0.8, allocation="uniform")
    assert training.sparsity() == pytest.approx(0.8, abs=1e-3)


@pytest.mark.parametrize("settings", [{"drop": -0.5}, {"floor": 2.0}])
def test_bad_schedules_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=next(iter(settings))):
        SelfishRNN(**settings)


def test_selfish_wants_the_length_of_the_run() -> None:
    net = lstm()
    with pytest.raises(RecipeError, match="total_steps"):
        SparseTraining(net, torch.optim.SGD(net.parameters(), lr=0.1), sparsity=0.5, method=SelfishRNN())


@pytest.mark.parametrize(
    ("net", "settings"), [(nn.Linear(8, 8), {}), (nn.Sequential(nn.LSTM(8, 8), nn.Linear(8, 8)), {"include": ["1"]})]
)
def test_selfish_wants_a_recurrent_layer(net: nn.Module, settings: dict[str, Any]) -> None:
    optimizer, method = torch.optim.SGD(net.parameters(), lr=0.1), SelfishRNN(every=1)
    with pytest.raises(RecipeError, match=r"no sparse weight is of an nn\.LSTM.*weight.*ITOP"):
        SparseTraining(net, optimizer, sparsity=0.5, method=method, total_steps=4, **settings)


@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_a_recurrent_layer_may_be_a_cell_beside_others(cell: Any) -> None:
    net = nn.ModuleList([cell(8, 8), nn.Linear(8, 8)])
    optimizer, method = torch.optim.SGD(net.parameters(), lr=0.1), SelfishRNN(every=1)
    training = SparseTraining(net, optimizer, sparsity=0.5, method=method, total_steps=4)
    assert {"0.weight_ih", "0.weight_hh"} <= set(training.masks)

"""Selfish-RNN and ST-RNN on the masks of recurrent layers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowdim.core.allocation import GateER
from lowdim.core.errors import RecipeError
from lowdim.train import SET, STRNN, SelfishRNN, SparseTraining

X = torch.randn(6, 5, 8, generator=torch.Generator().manual_seed(3))


def lstm() -> nn.LSTM:
    net = nn.LSTM(8, 12, num_layers=2, batch_first=True)
    source = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=source))
    return net


def train(net: nn.Module, method: Any, steps: int, **settings: Any) -> SparseTraining:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    training = SparseTraining(net, optimizer, method=method, total_steps=steps, **settings)
    for _ in range(steps):
        optimizer.zero_grad()
        net(X)[0].square().sum().backward()
        optimizer.step()
    return training


def per_gate(mask: Tensor, gates: int = 4) -> list[int]:
    return mask.reshape(gates, -1).sum(1).tolist()


# ---------------------------------------------------------------- Selfish-RNN


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
    training = train(
        cell(8, 12, batch_first=True), SelfishRNN(every=1), 3, sparsity=0.8, allocation="uniform"
    )
    assert training.sparsity() == pytest.approx(0.8, abs=1e-3)


# ---------------------------------------------------------------- ST-RNN


def test_every_gate_keeps_its_number() -> None:
    training = train(lstm(), STRNN(every=1), 5, sparsity=0.6, pattern="gates:4", allocation=GateER(4))
    assert sum(event["grown"]["weight_hh_l1"] for event in training.history) > 0
    for mask in training.masks.values():
        assert len(set(per_gate(mask))) == 1


def test_gates_of_unequal_numbers_keep_them() -> None:
    net = nn.LSTM(8, 4, bias=False)
    mask = torch.zeros(16, 8, dtype=torch.bool)
    for gate, kept in enumerate((2, 8, 16, 32)):
        mask[4 * gate : 4 * gate + 4].view(-1)[:kept] = True
    training = train(net, STRNN(every=1, drop=0.5), 4, masks={"weight_ih_l0": mask})
    assert per_gate(training.masks["weight_ih_l0"]) == [2, 8, 16, 32]
    assert not torch.equal(training.masks["weight_ih_l0"], mask)


def test_each_gate_loses_the_share_of_either_sign() -> None:
    net = nn.LSTM(4, 4, bias=False)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    mask = torch.zeros(16, 4, dtype=torch.bool)
    mask[:, :2] = True
    training = SparseTraining(
        net, optimizer, masks={"weight_ih_l0": mask}, method=STRNN(every=1, drop=0.25, regrow="zero")
    )
    row = torch.tensor([0.05, 0.2, 0.5, 0.9, -0.1, -0.3, -0.4, -0.8])  # the example of SET's card
    with torch.no_grad():
        for gate in range(4):
            net.weight_ih_l0[4 * gate : 4 * gate + 4, :2] = (gate + 1) * row.reshape(4, 2)
    before = net.weight_ih_l0.detach().clone()
    net(torch.ones(1, 4))[0].sum().backward()
    optimizer.step()
    lost = mask & (net.weight_ih_l0 == 0)
    for gate in range(4):
        gone = before[4 * gate : 4 * gate + 4][lost[4 * gate : 4 * gate + 4]] / (gate + 1)
        assert set(gone.tolist()) <= set(torch.tensor([0.05, -0.1]).tolist())
    assert per_gate(training.masks["weight_ih_l0"]) == [8, 8, 8, 8]
    assert int(lost.sum()) >= 4


def test_with_one_gate_it_is_set() -> None:
    settings: dict[str, Any] = {"sparsity": 0.7, "allocation": "er"}
    a, b = lstm(), lstm()
    ours = train(a, STRNN(every=2, gates=1), 6, **settings)
    theirs = train(b, SET(every=2), 6, **settings)
    assert ours.masks.hash() == theirs.masks.hash()
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        assert torch.equal(p, q)


def test_er_counts_every_gate_as_a_layer() -> None:
    shapes = {"ih": (16, 4), "hh": (16, 8)}
    found = GateER(4).shares(shapes, 0.5)
    # a gate of ih is (4, 4), of hh (4, 8): densities in the proportion 8 / 16 to 12 / 32
    assert found["ih"] / found["hh"] == pytest.approx((8 / 16) / (12 / 32))
    assert sum(found[n] * s[0] * s[1] for n, s in shapes.items()) == pytest.approx(96)


def test_gru_has_three() -> None:
    net = nn.GRU(8, 12, batch_first=True)
    training = train(net, STRNN(every=1, gates=3), 3, sparsity=0.5, pattern="gates:3", allocation=GateER(3))
    assert all(len(set(per_gate(mask, 3))) == 1 for mask in training.masks.values())
    with pytest.raises(RecipeError, match="36 rows"):
        train(nn.GRU(8, 12), STRNN(gates=5), 1, sparsity=0.5)


def test_blocks_are_refused() -> None:
    with pytest.raises(RecipeError, match="gates:4"):
        train(lstm(), STRNN(), 1, sparsity=0.5, pattern="4x4")


@pytest.mark.parametrize("settings", [{"drop": 1.5}, {"gates": 0}, {"regrow": "ones"}, {"every": 0}])
def test_bad_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=next(iter(settings))):
        STRNN(**settings)


@pytest.mark.parametrize("settings", [{"drop": -0.5}, {"floor": 2.0}])
def test_bad_schedules_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=next(iter(settings))):
        SelfishRNN(**settings)


def test_selfish_wants_the_length_of_the_run() -> None:
    net = lstm()
    with pytest.raises(RecipeError, match="total_steps"):
        SparseTraining(net, torch.optim.SGD(net.parameters(), lr=0.1), sparsity=0.5, method=SelfishRNN())

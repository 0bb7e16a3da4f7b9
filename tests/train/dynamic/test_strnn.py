"""ST-RNN: every gate of a recurrent matrix keeps its number."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.train.recurrent import lstm, per_gate, train
from torch import nn

from lowdim.core.allocation import GateER
from lowdim.core.errors import RecipeError
from lowdim.train import SET, STRNN, SparseTraining


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


@pytest.mark.parametrize(("rule", "gone"), [("magnitude", [0.01, 0.02]), ("sign-share", [0.01, -0.6])])
def test_each_gate_loses_its_smallest_or_the_share_of_either_sign(rule: Any, gone: list[float]) -> None:
    net = nn.LSTM(4, 4, bias=False)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    mask = torch.zeros(16, 4, dtype=torch.bool)
    mask[:, :2] = True
    method = STRNN(every=1, drop=0.25, rule=rule, schedule="constant")
    training = SparseTraining(net, optimizer, masks={"weight_ih_l0": mask}, method=method)
    row = torch.tensor([0.01, 0.02, 0.5, 0.9, -0.6, -0.7, -0.8, -0.9])
    with torch.no_grad():
        for gate in range(4):
            net.weight_ih_l0[4 * gate : 4 * gate + 4, :2] = (gate + 1) * row.reshape(4, 2)
    before = net.weight_ih_l0.detach().clone()
    net(torch.ones(1, 4))[0].sum().backward()
    optimizer.step()
    lost = mask & (net.weight_ih_l0 != before)
    for gate in range(4):
        found = before[4 * gate : 4 * gate + 4][lost[4 * gate : 4 * gate + 4]] / (gate + 1)
        assert sorted(found.tolist()) == pytest.approx(sorted(gone))
    assert per_gate(training.masks["weight_ih_l0"]) == [8, 8, 8, 8]


def test_the_rate_decays_to_nothing() -> None:
    assert [round(STRNN(drop=0.25).share(t, 100), 4) for t in (0, 50, 100)] == [0.25, 0.125, 0.0]
    assert STRNN(drop=0.25, schedule="constant").share(50, None) == 0.25
    with pytest.raises(RecipeError, match="give total_steps"):
        STRNN().check_length(None)
    training = train(lstm(), STRNN(every=1, drop=0.8), 10, sparsity=0.6, pattern="gates:4", allocation=GateER(4))
    moved = [sum(event["dropped"].values()) for event in training.history]
    assert moved[0] > 3 * moved[-1]


def test_with_one_gate_and_the_rule_of_set_it_is_set() -> None:
    settings: dict[str, Any] = {"sparsity": 0.7, "allocation": "er"}
    a, b = lstm(), lstm()
    ours = train(a, STRNN(every=2, gates=1, rule="sign-share", schedule="constant"), 6, **settings)
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


@pytest.mark.parametrize("settings", [{"drop": 1.5}, {"gates": 0}, {"regrow": "ones"}, {"every": 0}, {"rule": "x"}])
def test_bad_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=next(iter(settings))):
        STRNN(**settings)

"""NeurRev by hand: a dormant neuron wakes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests.train.small import one_row, step_with

from lowdim.train import NeurRev, RigL


def once(**settings: Any) -> NeurRev:
    return NeurRev(every=1, until=1.0, schedule="constant", noise=0.0, **settings)


def test_the_value_reading_frees_a_dormant_neuron() -> None:
    method = once(drop=0.34, rho=1.0, reading="value")
    model, training = one_row([0.2, 0.3, -2.0, 0.0], [1, 1, 1, 0], method)
    x = torch.ones(1, 4)
    assert float(model(x).detach().relu()) == 0.0
    assert step_with(model, training, [0, 0, 0, 1]) == [1, 1, 0, 1]
    assert float(model(x).detach().relu()) == pytest.approx(0.5)


def test_the_change_reading_drops_what_training_moved_down() -> None:
    # from [.9, -.1, .8, -2] to [.2, .3, .7, -1.9]: changes -.7, +.4, -.1, +.1
    model, training = one_row(
        [0.9, -0.1, 0.8, -2.0, 0.0], [1, 1, 1, 1, 0], once(drop=0.25, rho=1.0, order="after_step")
    )
    training.optimizer.param_groups[0].update(lr=1.0, momentum=0.0)
    model.weight.grad = torch.tensor([[0.7, -0.4, 0.1, -0.1, 5.0]])
    training.optimizer.step()
    assert training.masks["weight"].tolist() == [[False, True, True, True, True]]
    assert model.weight.tolist()[0] == pytest.approx([0.0, 0.3, 0.7, -1.9, 0.0])
    # since then: 0, -.2, -.3, 0 and, of the weight that grew, from zero, -.25
    model.weight.grad = torch.tensor([[9.0, 0.2, 0.3, 0.0, 0.25]])
    training.optimizer.step()
    assert training.masks["weight"].tolist() == [[True, True, False, True, True]]
    assert model.weight.tolist()[0] == pytest.approx([0.0, 0.1, 0.0, -1.9, -0.25])


def test_the_share_is_rounded_up_and_stops_at_what_moved_down() -> None:
    for rho, gone in ((0.1, [0, 2]), (0.0, [0, 1]), (1.0, [2, 0])):
        method = once(drop=0.5, rho=rho, reading="value")
        model, training = one_row([0.1, 0.2, -3.0, 4.0, 0.0, 0.0], [1, 1, 1, 1, 0, 0], method)
        after = step_with(model, training, [0, 0, 0, 0, 1, 1])
        assert sorted(i for i in range(4) if not after[i]) == sorted(gone)


def test_goes_on_from_a_state() -> None:
    runs = []
    for saves in (False, True):
        model, training = one_row([0.9, -0.1, 0.8, -2.0, 0.0], [1, 1, 1, 1, 0], once(drop=0.5, order="after_step"))
        training.optimizer.param_groups[0].update(lr=0.5)
        source = torch.Generator().manual_seed(0)
        for step in range(8):
            model.weight.grad = torch.randn(1, 5, generator=source)
            training.optimizer.step()
            if saves and step == 3:
                states = [copy.deepcopy(x.state_dict()) for x in (model, training.optimizer, training)]
                model, training = one_row([0.0] * 5, [1, 1, 1, 1, 0], once(drop=0.5, order="after_step"))
                for target, state in zip((model, training.optimizer, training), states, strict=True):
                    target.load_state_dict(state)
        runs.append((training.masks.hash(), model.weight.tolist()))
    assert runs[0] == runs[1]


def test_without_its_share_it_is_rigl() -> None:
    torch.manual_seed(0)
    weights, mask = torch.randn(30).tolist(), [1] * 15 + [0] * 15
    runs = []
    for method in (RigL(every=1), NeurRev(every=1, rho=0.0)):
        model, training = one_row(weights, mask, method)
        runs.append([step_with(model, training, torch.arange(30.0).tolist()) for _ in range(7)])
    assert runs[0] == runs[1]

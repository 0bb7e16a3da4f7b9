"""NeurRev by hand: a dormant neuron wakes."""

from __future__ import annotations

import pytest
import torch
from tests.train.small import one_row, step_with

from lowdim.train import NeurRev, RigL


def test_frees_a_dormant_neuron() -> None:
    method = NeurRev(every=1, until=1.0, drop=0.34, schedule="constant", rho=1.0)
    model, training = one_row([0.2, 0.3, -2.0, 0.0], [1, 1, 1, 0], method)
    x = torch.ones(1, 4)
    assert float(model(x).detach().relu()) == 0.0
    assert step_with(model, training, [0, 0, 0, 1]) == [1, 1, 0, 1]
    assert float(model(x).detach().relu()) == pytest.approx(0.5)


def test_without_its_share_it_is_rigl() -> None:
    torch.manual_seed(0)
    weights, mask = torch.randn(30).tolist(), [1] * 15 + [0] * 15
    runs = []
    for method in (RigL(every=1), NeurRev(every=1, rho=0.0)):
        model, training = one_row(weights, mask, method)
        runs.append([step_with(model, training, torch.arange(30.0).tolist()) for _ in range(7)])
    assert runs[0] == runs[1]

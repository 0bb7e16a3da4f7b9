"""The expected exploration rate: limits, and random growth simulated."""

from __future__ import annotations

import pytest
import torch

from lowdim.evaluate.errors import EvaluationError
from lowdim.evaluate.probe.exploration import expected_exploration


def test_limits() -> None:
    assert expected_exploration(0.1, []) == pytest.approx(0.1)
    assert expected_exploration(0.1, [(0, 90)] * 5) == pytest.approx(0.1)
    assert expected_exploration(0.5, [(8, 8)]) == 1.0
    assert expected_exploration(1.0, [(0, 0)]) == 1.0


def test_random_growth_explores_as_much_as_expected() -> None:
    size, active, replaced, updates, runs = 200, 40, 15, 6, 200
    generator = torch.Generator().manual_seed(0)
    rates = []
    for _ in range(runs):
        mask = torch.zeros(size, dtype=torch.bool)
        mask[torch.randperm(size, generator=generator)[:active]] = True
        seen = mask.clone()
        for _ in range(updates):
            on = mask.nonzero().flatten()
            mask[on[torch.randperm(active, generator=generator)[:replaced]]] = False
            off = (~mask).nonzero().flatten()
            mask[off[torch.randperm(len(off), generator=generator)[:replaced]]] = True
            seen |= mask
        rates.append(seen.double().mean())
    rates = torch.stack(rates)
    expected = expected_exploration(active / size, [(replaced, size - active + replaced)] * updates)
    assert abs(float(rates.mean()) - expected) < 4 * float(rates.std()) / runs**0.5


@pytest.mark.parametrize(("density", "update"), [(-0.1, (0, 1)), (0.5, (3, 2))])
def test_bad_input(density: float, update: tuple[int, int]) -> None:
    with pytest.raises(EvaluationError):
        expected_exploration(density, [update])

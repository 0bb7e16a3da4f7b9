"""DPO and IPO: values by hand, and what becomes of ties."""

from __future__ import annotations

import math

import pytest
import torch

from lowdim.train.preference.base import Preference
from lowdim.train.preference.dpo import DPO
from lowdim.train.preference.ipo import IPO

NO = torch.zeros(1, dtype=torch.bool)


def test_dpo_by_hand() -> None:
    assert float(DPO(beta=0.5).losses(torch.tensor([2.0]), NO)) == pytest.approx(math.log(1 + math.exp(-1)))
    smoothed = DPO(beta=0.5, smoothing=0.2).losses(torch.tensor([2.0]), NO)
    assert float(smoothed) == pytest.approx(0.8 * math.log(1 + math.exp(-1)) + 0.2 * math.log(1 + math.exp(1)))
    assert bool(DPO().losses(torch.tensor([-1e4, 1e4]), torch.zeros(2).bool()).isfinite().all())


def test_ipo_by_hand() -> None:
    """The ratio is pulled to 1 / (2 beta), from both sides."""
    assert float(IPO(beta=0.1).losses(torch.tensor([2.0]), NO)) == pytest.approx(9.0)
    ratio = torch.tensor([4.0, 5.0, 6.0], requires_grad=True)
    IPO(beta=0.1).losses(ratio, torch.zeros(3).bool()).sum().backward()
    assert ratio.grad is not None and ratio.grad.tolist() == pytest.approx([-2.0, 0.0, 2.0])


@pytest.mark.parametrize("kind", [DPO, IPO])
def test_ties_are_left_out_or_taken_for_preferences(kind: type[DPO] | type[IPO]) -> None:
    rule: Preference = kind()
    rule.check_ties(5)
    assert rule.drops_ties and not kind(ties="prefer").drops_ties and not rule.knows_ties
    ratio = torch.tensor([0.3])
    assert torch.equal(rule.losses(ratio, NO), rule.losses(ratio, ~NO))

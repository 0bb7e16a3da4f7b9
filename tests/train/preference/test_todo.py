"""TODO: three probabilities that add up to one, and the values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lowdim.core.errors import RecipeError
from lowdim.train.preference.dpo import DPO
from lowdim.train.preference.todo import TODO

WIDE = torch.linspace(-200, 200, 81)


def of(rule: TODO | DPO, ratio: float, tie: bool = False) -> float:
    return float(rule.losses(torch.tensor([ratio]), torch.tensor([tie])))


@pytest.mark.parametrize(
    ("mu", "chances", "preferred", "tied"),
    [(0.0, (0.3775, 0.2449, 0.3775), 0.9741, 1.4068), (1.0, (0.6225, 0.1951, 0.1824), 0.4741, 1.6342)],
)
def test_values_by_hand(mu: float, chances: tuple[float, ...], preferred: float, tied: float) -> None:
    rule = TODO(beta=1.0, alpha=0.5)
    assert [float(p) for p in rule.probabilities(torch.tensor(mu))] == pytest.approx(chances, abs=5e-5)
    assert of(rule, mu) == pytest.approx(preferred, abs=5e-5)
    assert of(rule, mu, tie=True) == pytest.approx(tied, abs=5e-5)


@pytest.mark.parametrize("alpha", [1e-4, 0.1, 0.5, 3.0, 400.0])
def test_the_probabilities_add_up_to_one_and_losses_are_their_logarithms(alpha: float) -> None:
    rule = TODO(beta=0.7, alpha=alpha)
    win, tie, loss = rule.probabilities(WIDE)
    assert torch.allclose(win + tie + loss, torch.ones(81), atol=1e-5)
    yes = torch.ones(81, dtype=torch.bool)
    assert bool(rule.losses(WIDE, yes).isfinite().all()) and bool(rule.losses(WIDE, ~yes).isfinite().all())
    near = WIDE.abs() < 40
    if 1e-4 < alpha < 10:
        assert torch.allclose(rule.losses(WIDE, yes)[near], -tie[near].log(), atol=1e-3)
        assert torch.allclose(rule.losses(WIDE, ~yes)[near], -win[near].log(), atol=1e-3)


def test_a_tie_is_symmetric_and_least_where_rewards_are_equal() -> None:
    rule, ratio = TODO(beta=1.0), torch.linspace(-3, 3, 7, requires_grad=True)
    found = rule.losses(ratio, torch.ones(7, dtype=torch.bool))
    found.sum().backward()
    assert torch.allclose(found, found.flip(0)) and int(found.argmin()) == 3
    assert ratio.grad is not None and float(ratio.grad[3]) == pytest.approx(0.0, abs=1e-7)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_without_margin_it_is_dpo(smoothing: float) -> None:
    ratio, no = torch.linspace(-30, 30, 61, requires_grad=True), torch.zeros(61, dtype=torch.bool)
    todo, dpo = TODO(beta=0.3, alpha=0.0, smoothing=smoothing), DPO(beta=0.3, smoothing=smoothing)
    assert torch.allclose(todo.losses(ratio, no), dpo.losses(ratio, no), rtol=1e-6, atol=1e-7)
    one, other = (torch.autograd.grad(rule.losses(ratio, no).sum(), ratio)[0] for rule in (todo, dpo))
    assert torch.allclose(one, other, rtol=1e-6, atol=1e-7)
    todo.check_ties(0)
    with pytest.raises(RecipeError, match=r"alpha is 0, .* and 3 pairs are ties"):
        todo.check_ties(3)


def test_a_batch_of_both_is_the_mean_of_each() -> None:
    rule = TODO(beta=1.0)
    both = rule.losses(torch.tensor([1.0, 1.0]), torch.tensor([False, True]))
    assert both.mean() == pytest.approx((0.4741 + 1.6342) / 2, abs=5e-5)


def test_what_is_decided() -> None:
    ratio = torch.tensor([-0.6, -0.4, 0.4, 0.6])
    found: list[Tensor] = [rule.decided(ratio) for rule in (TODO(beta=1.0, alpha=0.5), DPO(beta=1.0))]
    assert [each.tolist() for each in found] == [[-1, 0, 0, 1], [-1, -1, 1, 1]]
    win = TODO(beta=1.0, alpha=0.5).probabilities(torch.tensor(0.5))[0]
    assert float(win) == 0.5 and TODO.knows_ties and not TODO().drops_ties


def test_large_margins_do_not_overflow() -> None:
    assert math.isfinite(of(TODO(alpha=1000.0), 0.0, tie=True))


@pytest.mark.parametrize(("key", "value"), [("alpha", -0.1), ("beta", 0.0), ("smoothing", 0.5)])
def test_settings_out_of_range(key: str, value: float) -> None:
    with pytest.raises(RecipeError, match=f"{key} must be"):
        TODO(**{key: value})  # type: ignore[arg-type]

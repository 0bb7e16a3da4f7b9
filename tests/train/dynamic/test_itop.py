"""ITOP by hand: its rules, and the rate of what was explored."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests.train.small import hold, mlp, one_row, step_with
from torch import nn

from lowdim.core.errors import RecipeError
from lowdim.train import ITOP, SparseTraining, Static

WEIGHTS, MASK = [0.9, -0.1, 0.5, 0.0, 0.0, 0.0], [1, 1, 1, 0, 0, 0]


def test_rate_counts_every_weight_that_was_ever_active() -> None:
    weights, mask = [1.0, 2, 3, 4, *[0.0] * 12], [1] * 4 + [0] * 12
    model, training = one_row(weights, mask, ITOP(every=1, drop=0.5, floor=0.5, grow="unfired"))
    assert training.explored() == 4 / 16
    step_with(model, training, [0.0] * 16)
    step_with(model, training, [0.0] * 16)
    assert training.explored() == training.explored("weight") == 8 / 16
    assert [entry["grown"]["weight"] for entry in training.history] == [2, 2]


def test_the_count_is_rounded_up() -> None:
    model, training = one_row([1.0, 2, 3, *[0.0] * 9], [1] * 3 + [0] * 9, ITOP(every=1, drop=0.4, floor=0.4))
    step_with(model, training, [0.0] * 12)
    assert training.history[0]["dropped"]["weight"] == 2 or training.history[0]["grown"]["weight"] < 2
    assert int(training.masks["weight"].sum()) == 3


def test_taylor_drops_what_changes_the_loss_least() -> None:
    method = ITOP(every=1, drop=0.25, floor=0.25, death="taylor", grow="gradient")
    model, training = one_row([1.0, 2, 3, 4, 0, 0], [1, 1, 1, 1, 0, 0], method)
    assert step_with(model, training, [9, 9, 0.1, 9, 1, 2]) == [1, 1, 0, 1, 0, 1]


def test_threshold_drops_whatever_is_below_and_grows_as_many() -> None:
    method = ITOP(every=1, death="threshold", threshold=0.5, grow="gradient", candidates="new")
    model, training = one_row([0.9, -0.5, 0.4, -0.6, 0, 0, 0], [1, 1, 1, 1, 0, 0, 0], method)
    assert step_with(model, training, [9, 9, 9, 9, 1, 3, 2]) == [1, 0, 0, 1, 0, 1, 1]
    assert step_with(model, training, [0, 8, 7, 9, 0, 0, 0]) == [1, 1, 1, 1, 0, 0, 0]  # new weights are zero: below
    usual, training = one_row([0.002, 0.0005, 0.0], [1, 1, 0], ITOP(every=1, death="threshold", grow="gradient"))
    assert step_with(usual, training, [1, 1, 2]) == [1, 0, 1]
    with pytest.raises(RecipeError, match=r"threshold=0\.5 does not go with death='magnitude'"):
        ITOP(threshold=0.5)


def test_schedules_of_the_code() -> None:
    linear, steps = ITOP(schedule="linear"), ITOP(schedule="stepwise")
    assert [round(linear.share(t, 100), 4) for t in (0, 20, 50, 100)] == [0.5, 0.401, 0.2525, 0.005]
    assert [steps.share(t, 10**6) for t in (0, 599, 600, 1800)] == pytest.approx([0.5, 0.5, 0.495, 0.5 * 0.99**3])
    assert steps.share(10**6, 10**6) == 0.005


@pytest.mark.parametrize(
    ("grow", "expected"), [("momentum", [0, 0, 1, 0]), ("gradient", [0, 0, 0, 1])], ids=("momentum", "gradient")
)
def test_momentum_remembers_the_gradients_of_weights_that_are_off(grow: Any, expected: list[int]) -> None:
    method = ITOP(every=3, drop=0.5, floor=0.5, grow=grow, candidates="new")
    model, training = one_row([0.1, 0.0, 0.0, 0.0], [1, 0, 0, 0], method)
    # momenta after three steps: (0.9 x + y) 0.9 + z = 4.05, 8.1 and 5 of the last three weights
    assert step_with(model, training, [0, 5, 10, 0]) == [1, 0, 0, 0]
    assert step_with(model, training, [0, 0, 0, 0]) == [1, 0, 0, 0]
    assert step_with(model, training, [0, 0, 0, 5]) == expected
    assert not model.weight.grad.any() or grow == "gradient"


def test_momentum_of_adam_is_over_the_root_of_the_squares() -> None:
    model = nn.Linear(3, 1, bias=False)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.0, betas=(0.5, 0.5))
    mask = {"weight": torch.tensor([[True, False, False]])}
    method = ITOP(every=2, drop=0.5, floor=0.5, grow="momentum", candidates="new")
    training = SparseTraining(model, optimizer, method=method, masks=mask, total_steps=9)
    # m = .5 (.5 g1 + g2), v = .5 (.5 g1^2 + g2^2): 1.5 / 1.5^.5 = 1.22 of (1, 1), 5 / 50^.5 = .71 of (0, 10)
    for gradient in ([0.0, 1.0, 0.0], [0.0, 1.0, 10.0]):
        step_with(model, training, gradient)
    assert training.masks["weight"].tolist() == [[False, True, False]]


def test_momentum_goes_on_from_a_state_and_is_refused_without_dense_weights() -> None:
    method = ITOP(every=2, drop=0.5, floor=0.5, grow="momentum")
    runs = []
    for saves in (False, True):
        model, training = one_row([0.5, -0.3, *[0.0] * 6], [1, 1] + [0] * 6, method)
        source = torch.Generator().manual_seed(0)
        for step in range(7):
            step_with(model, training, torch.randn(8, generator=source).tolist())
            if saves and step == 2:
                states = [copy.deepcopy(x.state_dict()) for x in (model, training.optimizer, training)]
                model, training = one_row([0.0] * 8, [1, 1] + [0] * 6, method)
                for target, state in zip((model, training.optimizer, training), states, strict=True):
                    target.load_state_dict(state)
        runs.append(training.masks.hash())
    assert runs[0] == runs[1]
    with pytest.raises(RecipeError, match="grow='momentum' needs the gradient of every weight"):
        hold(model=mlp(8, 8, 4), method=method, total_steps=9, pattern="4x4")


def test_static_masks_explore_nothing() -> None:
    model, training = one_row(WEIGHTS, MASK, Static())
    for _ in range(3):
        step_with(model, training, [1.0] * 6)
    assert training.explored() == 0.5


def test_dead_zeros_are_dropped_one_by_one() -> None:
    method = ITOP(every=1, drop=0.25, floor=0.25, grow="gradient")
    model, training = one_row([0.0, 0, 0, 4, 0, 0], [1, 1, 1, 1, 0, 0], method)
    assert step_with(model, training, [0, 0, 0, 0, 1, 2]) == [1, 1, 0, 1, 0, 1]


def test_random_growth_explores_as_expected() -> None:
    rates = []
    for seed in range(20):
        weights = [1.0] * 100 + [0.0] * 900
        model, training = one_row(
            weights,
            [1] * 100 + [0] * 900,
            ITOP(every=1, drop=0.3, floor=0.3, candidates="new"),
            seed=seed,
        )
        for _ in range(10):
            step_with(model, training, [0.0] * 1000)
        rates.append(training.explored())
    expected = 1 - 0.9 * (1 - 30 / 900) ** 10
    assert sum(rates) / 20 == pytest.approx(expected, abs=0.01)

"""ITOP by hand: its rules, and the rate of what was explored."""

from __future__ import annotations

import pytest
from tests.train.small import one_row, step_with

from lowdim.train import ITOP, Static

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

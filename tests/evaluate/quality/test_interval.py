"""Intervals of shares: published examples, and what must hold of any."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowdim.evaluate.quality.interval import mcnemar, paired, wilson

COUNTS = st.integers(0, 300)


def test_wilson_of_the_published_examples() -> None:
    """Newcombe, 1998, "Two-sided confidence intervals for the single proportion", table I."""
    for right, count, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)):
        assert wilson(right, count) == pytest.approx((low, high), abs=5e-5)
    assert wilson(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)


def test_paired_of_the_published_example() -> None:
    """Newcombe, 1998, "Improved confidence intervals ... paired data", table II, method 10."""
    assert paired(36, 12, 2, 0) == pytest.approx((0.0569, 0.3404), abs=5e-5)


@given(COUNTS, COUNTS, COUNTS, COUNTS)
def test_the_interval_of_a_difference_holds_it_and_turns_with_its_sign(a: int, b: int, c: int, d: int) -> None:
    if not a + b + c + d:
        return
    low, high = paired(a, b, c, d)
    assert -1 <= low <= (b - c) / (a + b + c + d) <= high <= 1
    turned = paired(a, c, b, d)
    assert (-turned.high, -turned.low) == pytest.approx((low, high))


def test_equal_answers_have_a_small_interval_around_nothing() -> None:
    low, high = paired(50, 0, 0, 50)
    assert low == pytest.approx(-high) and 0 < high < 0.02
    independent = paired(25, 25, 25, 25)
    assert independent.high > 5 * high


def test_mcnemar_by_hand() -> None:
    assert mcnemar(5, 0) == 2 / 32
    assert mcnemar(1, 8) == pytest.approx(2 * (1 + 9) / 512)
    assert mcnemar(4, 4) == 1.0
    assert math.isfinite(mcnemar(2000, 1500))

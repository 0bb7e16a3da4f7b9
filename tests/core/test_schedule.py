"""The schedules' values as papers give them."""

from __future__ import annotations

import pytest

from lowdim.core.schedule import cosine, power


@pytest.mark.parametrize("schedule", [cosine, power])
def test_ends_where_it_should_and_stays_there(schedule: object) -> None:
    assert schedule(0, 100, 0.5, 0.1) == pytest.approx(0.5)  # type: ignore[operator]
    assert [schedule(t, 100, 0.5, 0.1) for t in (100, 101, 10_000)] == pytest.approx([0.1] * 3)  # type: ignore[operator]
    values = [schedule(t, 100, 0.5, 0.1) for t in range(101)]  # type: ignore[operator]
    assert values == sorted(values, reverse=True)


def test_a_run_of_no_length_is_over() -> None:
    assert cosine(0, 0, 0.3) == 0.0
    assert power(0, 0, 0.0, 0.9) == 0.9


def test_a_straight_line() -> None:
    assert [power(t, 4, 1.0, 0.0, exponent=1.0) for t in range(5)] == [1.0, 0.75, 0.5, 0.25, 0.0]

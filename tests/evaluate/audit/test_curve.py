"""Reading curves: hand examples."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lowdim.evaluate.audit.curve import knee, tolerance_point
from lowdim.evaluate.audit.junkdna import tolerated
from lowdim.evaluate.errors import EvaluationError

GRID = [round(0.1 * i, 1) for i in range(11)]
FLAT_THEN_DOWN = [1.0 - max(0.0, s - 0.5) for s in GRID]


def test_a_curve_flat_to_a_half_then_straight_down() -> None:
    assert knee(GRID, FLAT_THEN_DOWN) == 0.5
    assert tolerance_point(GRID, FLAT_THEN_DOWN) == 0.5
    assert tolerance_point(GRID, FLAT_THEN_DOWN, tau=0.1) == 0.6
    assert tolerance_point(GRID, FLAT_THEN_DOWN, tau=0.0) == 0.5


@pytest.mark.parametrize(
    ("scores", "last"),
    [
        ([0.5, 0.45, 0.49, 0.498], 0.0),
        ([0.5, 0.498, 0.45, 0.5], 0.1),
        ([0.5, 0.5, 0.5, 0.5], 0.3),
        ([0.5, math.nan, 0.5, 0.5], 0.0),
        ([0.5, 0.6, 0.4, 0.6], 0.1),
        ([0.0, 0.0, -0.1, 0.0], 0.1),
    ],
)
def test_the_tolerance_is_the_end_of_an_unbroken_run(scores: list[float], last: float) -> None:
    grid = [0.0, 0.1, 0.2, 0.3]
    assert tolerance_point(grid, scores) == last
    assert tolerance_point(grid, [-score for score in scores], higher_is_better=False) == last
    assert tolerated(grid, [scores[0] - score for score in scores], 0.01) == last


def test_the_knee_stands_noise_within_one_step() -> None:
    noisy = np.array(FLAT_THEN_DOWN) + 0.01 * np.random.default_rng(0).standard_normal(11)
    assert abs(knee(GRID, noisy.tolist()) - 0.5) <= 0.1 + 1e-9


def test_lower_is_better_mirrors_both() -> None:
    rising = [3.0 - f for f in FLAT_THEN_DOWN]
    assert knee(GRID, rising, higher_is_better=False) == 0.5
    assert tolerance_point(GRID, rising, higher_is_better=False) == 0.5
    assert tolerance_point(GRID, rising, tau=0.05, higher_is_better=False) == 0.6
    assert knee(GRID, rising) is None


def test_the_knee_is_where_the_fall_begins_and_not_where_it_ends() -> None:
    # flat, steep, flat again: the second bend is no knee
    assert knee([0.0, 0.2, 0.4, 0.6, 0.8], [1.0, 1.0, 0.98, 0.2, 0.2]) in (0.2, 0.4)
    falling_then_flat = [1.0, 0.6, 0.2, 0.2, 0.2]
    assert knee([0.0, 0.2, 0.4, 0.6, 0.8], falling_then_flat) is None


@pytest.mark.parametrize("scores", [[1.0] * 4, [4.0, 3.0, 2.0, 1.0], [1.0, 2.0, 3.0, 3.0]])
def test_no_bend_and_no_fall_have_no_knee(scores: list[float]) -> None:
    assert knee([0.0, 0.1, 0.2, 0.3], scores) is None


def test_uneven_grids_and_scales_do_not_matter() -> None:
    grid = [0.0, 0.05, 0.3, 0.35, 0.6, 0.9]
    curve = [7.0 if s <= 0.35 else 7.0 - 2 * (s - 0.35) for s in grid]
    assert knee(grid, curve) == 0.35
    assert knee(grid, [1e-6 * f for f in curve]) == 0.35


def test_scores_that_are_not_numbers_are_left_out_of_the_knee_and_never_tolerated() -> None:
    scores = [*FLAT_THEN_DOWN[:8], -math.inf, math.nan, -math.inf]
    assert knee(GRID, scores) == 0.5
    assert tolerance_point(GRID, scores) == 0.5


def test_two_points_have_no_knee() -> None:
    assert knee([0.0, 0.5], [1.0, 0.0]) is None
    assert tolerance_point([0.0, 0.5], [1.0, 0.0]) == 0.0


def test_negative_scores_lose_downwards_too() -> None:
    assert tolerance_point([0.0, 0.1, 0.2], [-2.0, -2.02, -2.03]) == 0.1


@pytest.mark.parametrize("grid", [[0.0, 0.1], [0.1, 0.0, 0.2], [0.0, 0.0, 0.1], []])
def test_grids_that_do_not_fit(grid: list[float]) -> None:
    scores = [] if not grid else [1.0, 1.0, 1.0]
    for read in (knee, tolerance_point):
        with pytest.raises(EvaluationError, match=f"got {len(grid)} sparsities"):
            read(grid, scores)

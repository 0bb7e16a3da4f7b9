"""The front by hand: ties, equal points, dominated ones."""

from __future__ import annotations

from lowdim.pipeline.front.pareto import best_within, on_front


def test_a_dominated_point_is_not_on_the_front() -> None:
    assert on_front([(1, 9), (2, 5), (3, 7), (4, 1)]) == [True, True, False, True]


def test_of_a_tie_in_one_coordinate_the_better_in_the_other_stays() -> None:
    assert on_front([(2, 5), (2, 4), (3, 4)]) == [False, True, False]


def test_equal_points_stay_or_fall_together() -> None:
    assert on_front([(2, 5), (2, 5), (4, 6)]) == [True, True, False]
    assert on_front([(2, 5), (2, 5), (1, 5)]) == [False, False, True]


def test_a_single_point_and_none() -> None:
    assert on_front([(1, 1)]) == [True]
    assert on_front([]) == []


def test_three_coordinates() -> None:
    assert on_front([(1, 2, 3), (1, 2, 4), (3, 2, 1)]) == [True, False, True]


def test_the_best_within_a_budget() -> None:
    points = [(4.0, 1.0), (1.0, 9.0), (3.0, 5.0), (2.0, 5.0)]
    assert best_within(points, 4) == 0
    assert best_within(points, 3.5) == 3  # of equal losses the cheaper
    assert best_within(points, 1) == 1  # the budget itself fits
    assert best_within(points, 0.5) is None
    assert best_within([(1.0, 1.0), (1.0, 1.0)], 1) == 0

"""Positions drawn, dropped and merged."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowdim.core.transition import complement, draw, drop_by_sign, drop_lowest, member, union, whole


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(st.integers(0, 300), st.data())
def test_a_draw_is_exact_ascending_and_avoids_what_is_excluded(size: int, data: st.DataObject) -> None:
    excluded = torch.tensor(sorted(data.draw(st.sets(st.integers(0, size - 1)))) if size else [], dtype=torch.int64)
    count = data.draw(st.integers(0, size - len(excluded)))
    drawn = draw(count, size, excluded, source(data.draw(st.integers(0, 9))))
    assert len(drawn) == len(set(drawn.tolist())) == count
    assert drawn.tolist() == sorted(drawn.tolist())
    assert not member(drawn, excluded).any()


def test_a_draw_from_a_huge_range_needs_no_memory_for_it() -> None:
    size = 10**12
    excluded = draw(10_000, size, torch.empty(0, dtype=torch.int64), source())
    drawn = draw(5_000, size, excluded, source(1))
    assert len(drawn) == 5_000
    assert not member(drawn, excluded).any()
    assert 0 <= int(drawn[0]) < int(drawn[-1]) < size


@pytest.mark.parametrize("size", [20, 1 << 17])
def test_every_free_position_is_as_likely(size: int) -> None:
    excluded = torch.arange(0, size, 2)
    counts = torch.zeros(size)
    rounds, each = (2000, 3) if size == 20 else (200, 5000)
    for seed in range(rounds):
        counts[draw(each, size, excluded, source(seed))] += 1
    assert not counts[excluded].any()
    halves = counts.reshape(2, -1).sum(1)
    assert float(halves[0] / halves.sum()) == pytest.approx(0.5, abs=0.02)


def test_too_many() -> None:
    with pytest.raises(ValueError, match=r"free positions \(2\); got 3"):
        draw(3, 4, torch.tensor([0, 1]), source())


def test_merging() -> None:
    assert union(torch.tensor([3, 5]), torch.tensor([1, 5])).tolist() == [1, 3, 5]
    assert complement(torch.tensor([0, 2]), 4).tolist() == [1, 3]
    assert member(torch.tensor([1, 9]), torch.empty(0, dtype=torch.int64)).tolist() == [False, False]


def test_of_equal_values_the_last_goes_first() -> None:
    assert drop_lowest(torch.tensor([0.0, 0.0, 0.0, 1.0]), 2).tolist() == [True, False, False, True]


def test_signs_lose_the_same_share() -> None:
    values = torch.tensor([0.05, 0.2, 0.5, 0.9, -0.1, -0.3, -0.4, -0.8])
    assert values[~drop_by_sign(values, 0.25)].tolist() == pytest.approx([0.05, -0.1])
    assert drop_by_sign(torch.tensor([1.0, 2.0, 3.0]), 0.5).tolist() == [False, True, True]


def test_products_that_are_whole_but_for_rounding() -> None:
    assert [whole(0.1 * 3 * 10), whole(0.7 * 10), whole(0.3 * 3)] == [3, 7, 0]

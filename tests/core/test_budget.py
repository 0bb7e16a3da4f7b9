import itertools
import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lowdim.core.budget import apportion, fit

quotas = st.lists(st.floats(0, 1e6), min_size=1, max_size=12)
shares = st.lists(st.floats(-1, 2), min_size=1, max_size=12)


@given(quotas, st.integers(0, 10**7))
def test_shares_sum_to_the_total_and_stay_within_one_of_their_quota(q, total):
    counts = apportion(q, total)
    assert sum(counts) == total
    assume(math.fsum(q) > 1e-3)
    for count, weight in zip(counts, q, strict=True):
        assert abs(count - weight * total / math.fsum(q)) < 1 + 1e-6


@given(quotas, st.data())
def test_caps_hold(q, data):
    caps = data.draw(st.lists(st.integers(0, 50), min_size=len(q), max_size=len(q)))
    total = data.draw(st.integers(0, sum(caps)))
    counts = apportion(q, total, caps)
    assert sum(counts) == total
    assert all(0 <= count <= cap for count, cap in zip(counts, caps, strict=True))


def test_ties_go_to_the_first():
    assert apportion([1, 1, 1], 5) == [2, 2, 1]
    assert apportion([0, 0, 0], 4) == [2, 1, 1]


def test_largest_remainder_by_hand():
    assert apportion([1.5, 2.3, 6.2], 10) == [2, 2, 6]


@given(
    st.lists(st.integers(0, 10**9), min_size=1, max_size=20),
    st.lists(st.integers(1, 10**9), min_size=20, max_size=20),
)
def test_exact_counts_survive_the_way_through_shares(counts, sizes):
    sizes = [max(c, n) for c, n in zip(counts, sizes, strict=False)]
    through = [count / size * size for count, size in zip(counts, sizes, strict=True)]
    assert apportion(through, sum(counts), sizes) == counts


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (([1, -1], 2), "not negative"),
        (([1, math.nan], 2), "finite"),
        (([1, 1], -1), "total"),
        (([1, 1], 3, [1, 1]), r"allow \(2\); got 3"),
        (([1, 1], 1, [1]), "one entry per quota"),
    ],
)
def test_apportion_refuses(args, message):
    with pytest.raises(ValueError, match=message):
        apportion(*args)


@given(shares, st.data())
def test_fit_meets_the_budget_inside_the_limits(values, data):
    sizes = data.draw(st.lists(st.integers(1, 10**6), min_size=len(values), max_size=len(values)))
    target = data.draw(st.floats(0, 1))
    how = data.draw(st.sampled_from(["shift", "scale"]))
    if how == "scale":
        values = [abs(v) for v in values]
    got = fit(values, sizes, target, 0.99, how)
    assert all(0 <= s <= max(0.99, target) for s in got)
    mean = math.fsum(n * s for n, s in zip(sizes, got, strict=True)) / sum(sizes)
    assert mean == pytest.approx(target, abs=1e-9)


@given(shares, st.floats(0, 1))
def test_fit_keeps_the_order(values, target):
    got = fit(values, [1] * len(values), target)
    pairs = sorted(zip(values, got, strict=True))
    assert all(a[1] <= b[1] for a, b in itertools.pairwise(pairs))


def test_equal_values_give_the_target_itself():
    assert fit([5.0, 5.0, 5.0], [1, 2, 3], 0.7) == [0.7, 0.7, 0.7]


def test_values_on_budget_come_back_unchanged():
    assert fit([0.5, 0.9], [1, 1], 0.7) == [0.5, 0.9]


def test_scale_keeps_ratios_and_shift_keeps_differences():
    assert fit([0.1, 0.2, 0.3], [1, 1, 1], 0.4, how="scale") == pytest.approx([0.2, 0.4, 0.6])
    assert fit([0.1, 0.2, 0.3], [1, 1, 1], 0.4) == pytest.approx([0.3, 0.4, 0.5])


def test_alphapruning_overflow_is_clipped_and_solved_again():
    # 0.56 + 0.80 + 1.04 with the last cut to 1: the other two share 1.4 in their ratio 0.56 : 0.80
    assert fit([0.56, 0.8, 1.04], [1, 1, 1], 0.8, 1.0, "scale") == pytest.approx([1.4 * 7 / 17, 1.4 * 10 / 17, 1.0])


def test_a_target_above_the_cap_lifts_the_cap():
    assert max(fit([0.1, 0.9], [1, 1], 0.995)) == 0.995


def test_scale_with_zeros_that_cannot_grow():
    got = fit([0.0, 1.0], [3, 1], 0.9, 0.99, "scale")
    assert (3 * got[0] + got[1]) / 4 == pytest.approx(0.9)


def test_units_without_parameters_do_not_count():
    assert fit([0.1, 0.9, 0.5], [0, 1, 1], 0.7)[1:] == pytest.approx([0.9, 0.5])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (([1.0], [1, 2], 0.5), "same length"),
        (([], [], 0.5), "empty"),
        (([math.nan], [1], 0.5), "finite"),
        (([1.0], [1], 1.5), "got 1.5"),
        (([-1.0, 1.0], [1, 1], 0.5, 0.99, "scale"), "scaled"),
    ],
)
def test_fit_refuses(args, message):
    with pytest.raises(ValueError, match=message):
        fit(*args)

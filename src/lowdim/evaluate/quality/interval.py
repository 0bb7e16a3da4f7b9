"""Intervals and tests of shares: of one model, and of two on the same questions. Plain numbers, no torch."""

from __future__ import annotations

import math
from typing import NamedTuple

Z = 1.959963984540054
"""The normal distribution's 97.5% point: intervals hold the share 95 times of 100."""


class Interval(NamedTuple):
    """Both ends of an interval."""

    low: float
    high: float


def wilson(right: int, count: int, z: float = Z) -> Interval:
    """Return Wilson's score interval of a share.

        (p + z^2/2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2/n),  p = right / n

    Unlike p +- z times the standard error it stays within [0, 1] and is no point where p is 0 or 1. Paper: Wilson,
    "Probable inference, the law of succession, and statistical inference", 1927.

    Args:
        right: of the questions.
        count: n, at least 1.
        z: see `Z`.

    Example:
        >>> [round(end, 4) for end in wilson(81, 263)]
        [0.2553, 0.3662]
    """
    share, square = right / count, z * z
    middle = share + square / (2 * count)
    half = z * math.sqrt(share * (1 - share) / count + square / (4 * count * count))
    whole = 1 + square / count
    return Interval(max(0.0, (middle - half) / whole), min(1.0, (middle + half) / whole))


def paired(both: int, lost: int, won: int, neither: int, z: float = Z) -> Interval:
    """Return an interval of the difference of two shares on the same questions, first minus second.

    Newcombe's method 10: Wilson's intervals of both shares, joined by the correlation of the answers. With l, u the
    ends of the first share's interval and l', u' of the second's,

        low = d - sqrt((p - l)^2 - 2 phi (p - l) (u' - p') + (u' - p')^2)
        high = d + sqrt((u - p)^2 - 2 phi (u - p) (p' - l') + (p' - l')^2)

    Paper: "Improved confidence intervals for the difference between binomial proportions based on paired data", 1998.

    Args:
        both: questions that both models answer.
        lost: that only the first does.
        won: that only the second does.
        neither: that none does.
        z: see `Z`.

    Example:
        >>> [round(end, 4) for end in paired(36, 12, 2, 0)]
        [0.0569, 0.3404]
    """
    count = both + lost + won + neither
    first, second = (both + lost) / count, (both + won) / count
    one, other = wilson(both + lost, count, z), wilson(both + won, count, z)
    phi = _correlation(both, lost, won, neither)

    def reach(a: float, b: float) -> float:
        return math.sqrt(max(0.0, a * a - 2 * phi * a * b + b * b))

    difference = first - second
    low = difference - reach(first - one.low, other.high - second)
    high = difference + reach(one.high - first, second - other.low)
    return Interval(max(-1.0, low), min(1.0, high))


def _correlation(both: int, lost: int, won: int, neither: int) -> float:
    """Return phi of the fourfold table, corrected for continuity where it is positive."""
    rows = (both + lost) * (won + neither) * (both + won) * (lost + neither)
    if not rows:
        return 0.0
    crossed = both * neither - lost * won
    if crossed > 0:
        crossed = max(0.0, crossed - (both + lost + won + neither) / 2)  # type: ignore[assignment]
    return crossed / math.sqrt(rows)


def mcnemar(lost: int, won: int) -> float:
    """Return how likely so uneven a split of the answers that changed is where loss and gain are equally likely.

    The exact two-sided test: 2 P(X <= min(lost, won)), X binomial of lost + won trials at 1/2, at most 1. Paper:
    McNemar, "Note on the sampling error of the difference between correlated proportions or percentages", 1947.

    Example:
        >>> mcnemar(5, 0), mcnemar(3, 3), mcnemar(0, 0)
        (0.0625, 1.0, 1.0)
    """
    changed, least = lost + won, min(lost, won)
    tail = sum(math.comb(changed, k) for k in range(least + 1))
    return min(1.0, float(2 * tail / 2**changed))

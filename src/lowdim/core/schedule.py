"""Schedules: pure functions of the step."""

from __future__ import annotations

import math


def _share(step: float, last: float) -> float:
    """Return how far ``step`` is on the way from 0 to ``last``, 0 to 1."""
    return min(max(step / last, 0.0), 1.0) if last > 0 else 1.0


def cosine(step: float, last: float, start: float, floor: float = 0.0) -> float:
    """Fall from ``start`` to ``floor`` along half a cosine: floor + (start - floor) / 2 * (1 + cos(pi t / T)).

    With ``floor`` 0 it is RigL's share of weights moved (arXiv 1911.11134, eq. 1); ITOP and GraNet use a floor of
    0.005 and the whole run as T.

    Args:
        step: t.
        last: T; from there on the value stays at ``floor``.
        start: the value at step 0.
        floor: the value at step T.

    Example:
        >>> [round(cosine(t, 75, 0.3), 3) for t in (0, 25, 50, 75)]
        [0.3, 0.225, 0.075, 0.0]
        >>> [round(cosine(t, 100, 0.5, 0.005), 4) for t in (0, 50, 100)]
        [0.5, 0.2525, 0.005]
    """
    return floor + (start - floor) / 2 * (1 + math.cos(math.pi * _share(step, last)))


def power(step: float, last: float, start: float, end: float = 0.0, exponent: float = 3.0) -> float:
    """Go from ``start`` to ``end`` with a slope that dies out: end + (start - end) * (1 - t / T) ^ exponent.

    With exponent 3 it is the sparsity of gradual magnitude pruning (arXiv 1710.01878, eq. 1).

    Args:
        step: t.
        last: T; from there on the value stays at ``end``.
        start: the value at step 0.
        end: the value at step T.
        exponent: 1 is a straight line.

    Example:
        >>> [round(power(t, 4, 0.5, 0.9), 5) for t in range(5)]
        [0.5, 0.73125, 0.85, 0.89375, 0.9]
        >>> [round(power(t, 4, 0.0, 0.9), 5) for t in range(5)]
        [0.0, 0.52031, 0.7875, 0.88594, 0.9]
    """
    return end + (start - end) * float((1 - _share(step, last)) ** exponent)


def warmed(step: float, warmup: float) -> float:
    """Rise from 0 to 1 along a line: t / w, 1 from step w on.

    Example:
        >>> [warmed(t, 4) for t in (0, 1, 4, 9)], warmed(0, 0)
        ([0.0, 0.25, 1.0, 1.0], 1.0)
    """
    return _share(step, warmup)


def cooled(step: float, last: float, length: float, floor: float = 0.0) -> float:
    """Stay at 1, then fall along a line over the last steps: floor + (1 - floor) * (T - t) / c, from step T - c on.

    Args:
        step: t.
        last: T; the value there is ``floor``.
        length: c, the steps of the fall.
        floor: where it ends.

    Example:
        >>> [round(cooled(t, 100, 10), 2) for t in (0, 89, 90, 95, 99)]
        [1.0, 1.0, 1.0, 0.5, 0.1]
    """
    return 1.0 - (1.0 - floor) * _share(step - (last - length), length) if step > last - length else 1.0

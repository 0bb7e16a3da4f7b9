"""Reading a curve of scores over sparsity: how far it holds, and where it bends."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import takewhile

import numpy as np

from lowdim.evaluate.errors import EvaluationError


def tolerance_point(
    grid: Sequence[float], scores: Sequence[float], tau: float = 0.01, higher_is_better: bool = True
) -> float:
    r"""Return the largest sparsity of a grid up to which every score is within a tolerance of the dense score.

    .. math:: s^* = \max \{ s : f(t) \ge f(0) - \tau |f(0)| \text{ for all } t \le s \},

    or :math:`f(t) \le f(0) + \tau |f(0)|` where lower scores are better. A score that comes back after one that gave
    way does not count.

    Args:
        grid: s, ascending, the first of them dense.
        scores: f(s).
        tau: the relative loss that is tolerated.
        higher_is_better: direction of the score.

    Raises:
        EvaluationError: grid and scores do not fit each other.

    Example:
        >>> tolerance_point([0.0, 0.3, 0.6], [0.500, 0.496, 0.480])
        0.3
        >>> tolerance_point([0.0, 0.3, 0.6], [10.0, 10.1, 12.0], higher_is_better=False)
        0.3
        >>> tolerance_point([0.0, 0.1, 0.2], [0.500, 0.450, 0.498])
        0.0
    """
    _check(grid, scores)
    sign = 1.0 if higher_is_better else -1.0
    floor = sign * scores[0] - tau * abs(scores[0])
    # a loss of tau to the last bit is within tau, whatever rounding says
    slack = 1e-12 * abs(scores[0])
    return unbroken(grid, [sign * f >= floor - slack for f in scores])


def unbroken(grid: Sequence[float], holds: Sequence[bool]) -> float:
    """Return the last point of a grid up to which all hold; the first holds in any case.

    Example:
        >>> unbroken([0.0, 0.3, 0.6, 0.9], [True, True, False, True])
        0.3
    """
    run = list(takewhile(lambda pair: pair[1], zip(grid[1:], holds[1:], strict=True)))
    return run[-1][0] if run else grid[0]


def knee(grid: Sequence[float], scores: Sequence[float], higher_is_better: bool = True) -> float | None:
    r"""Return the sparsity beyond which the score falls much faster; ``None`` if the curve has no such bend.

    Two straight segments that meet at a point k of the grid are fitted by least squares,

    .. math:: f(s) \approx a + b s + c \max(0, s - k),

    and the k with the least error is returned, of those where the curve bends downwards (c < 0 for a score of which
    more is better) and then falls. Scores that are not finite are left out.

    Args:
        grid: s, ascending.
        scores: f(s).
        higher_is_better: direction of the score.

    Raises:
        EvaluationError: grid and scores do not fit each other.

    Example:
        >>> knee([0.0, 0.25, 0.5, 0.75, 1.0], [1.0, 1.0, 1.0, 0.6, 0.2])
        0.5
        >>> knee([0.0, 0.5, 1.0], [3.0, 2.0, 1.0]) is None
        True
    """
    _check(grid, scores)
    known = [(s, f) for s, f in zip(grid, scores, strict=True) if math.isfinite(f)]
    if len(known) < 3:
        return None
    s = np.array([s for s, _ in known])
    f = np.array([f for _, f in known]) * (1.0 if higher_is_better else -1.0)
    bend = float(1e-9 * np.ptp(f) + 1e-12 * np.abs(f).max()) / float(np.ptp(s))  # less is rounding
    best: tuple[float, float] | None = None
    for k in s[1:-1]:
        basis = np.stack([np.ones_like(s), s, np.maximum(0.0, s - k)], axis=1)
        fitted = np.linalg.lstsq(basis, f, rcond=None)[0]
        error = float(np.square(f - basis @ fitted).sum())
        slope, change = fitted[1:]
        if change < -bend and slope + change < -bend and (best is None or error < best[0]):
            best = (error, float(k))
    return None if best is None else best[1]


def _check(grid: Sequence[float], scores: Sequence[float]) -> None:
    if len(grid) != len(scores) or not len(grid) or list(grid) != sorted(set(grid)):
        raise EvaluationError(
            f"a curve needs one score for every sparsity of an ascending grid; got {len(grid)} sparsities "
            f"and {len(scores)} scores"
        )

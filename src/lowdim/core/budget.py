"""Budgets: split a whole number exactly, and make real shares meet their target."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

# Shares this much smaller than the largest count as zero when ratios are kept.
_TINY = 1e-12


def apportion(quotas: Sequence[float], total: int, caps: Sequence[int] | None = None) -> list[int]:
    """Split ``total`` units in proportion to ``quotas`` by largest remainder.

    Each share starts at floor(q_i), q_i = quotas_i * total / sum(quotas); the units left over go to the
    largest fractional parts, of equal ones to the lowest index. No share exceeds its cap: what a cap cuts
    off is spread over the others in proportion. If every quota is zero the split is even.

    Args:
        quotas: non-negative weights.
        total: units to hand out.
        caps: most units each share may take; unlimited if None.

    Returns:
        One count per quota; they sum to ``total`` exactly.

    Raises:
        ValueError: a quota is negative or not finite, or the caps leave no room for ``total``.

    Example:
        >>> apportion([1, 1, 1], 4)
        [2, 1, 1]
        >>> apportion([8, 1, 1], 10, caps=[4, 10, 10])
        [4, 3, 3]
    """
    limits = [total] * len(quotas) if caps is None else [min(int(cap), total) for cap in caps]
    if len(limits) != len(quotas):
        raise ValueError(f"caps must have one entry per quota ({len(quotas)}); got {len(limits)}")
    if any(not (q >= 0 and math.isfinite(q)) for q in quotas):
        raise ValueError(f"quotas must be finite and not negative; got {list(quotas)}")
    if total < 0 or sum(limits) < total:
        raise ValueError(f"total must be between 0 and what the caps allow ({sum(limits)}); got {total}")
    exact = _shares(quotas, total, limits)
    counts = [min(int(x), limit) for x, limit in zip(exact, limits, strict=True)]
    order = sorted(range(len(counts)), key=lambda i: counts[i] - exact[i])
    while (left := total - sum(counts)) > 0:
        open_ = [i for i in order if counts[i] < limits[i]]
        for i in open_[:left]:
            counts[i] += 1
    for i in reversed(order):  # float rounding can lift a floor past the total
        if sum(counts) == total:
            break
        counts[i] -= counts[i] > 0
    return counts


def _shares(quotas: Sequence[float], total: int, limits: Sequence[int]) -> list[float]:
    """Return the real-valued shares of ``total``, capped, what the caps cut off spread again."""
    shares = [0.0] * len(quotas)
    free, left = list(range(len(quotas))), float(total)
    while free:
        weight = math.fsum(quotas[i] for i in free)
        for i in free:
            shares[i] = quotas[i] * left / weight if weight > 0 else left / len(free)
        full = [i for i in free if shares[i] > limits[i]]
        if not full:
            break
        for i in full:
            shares[i] = float(limits[i])
            left -= limits[i]
        free = [i for i in free if i not in set(full)]
    return shares


def fit(
    values: Sequence[float],
    sizes: Sequence[int],
    target: float,
    cap: float = 0.99,
    how: Literal["shift", "scale"] = "shift",
) -> list[float]:
    """Clip shares to [0, cap] and re-solve them so that their size-weighted mean is the target.

    Returns s_i = clip(v_i + c) for "shift", clip(c * v_i) for "scale", with the one c for which
    sum(n_i s_i) = target * sum(n_i), n_i = ``sizes``. Values that already meet the budget come back as they
    are; equal values come back as the target itself. A target above the cap raises the cap to the target.

    Args:
        values: wanted shares, one per unit.
        sizes: parameters per unit; units of size 0 do not count.
        target: the mean to meet, 0 to 1.
        cap: upper limit of one share.
        how: what keeps its shape under the correction, differences or ratios.

    Raises:
        ValueError: an argument is out of range, or "scale" is asked of a negative value.

    Example:
        >>> [round(x, 4) for x in fit([0.56, 0.8, 1.04], [1, 1, 1], 0.8, cap=1.0)]
        [0.58, 0.82, 1.0]
        >>> fit([3.0, 3.0], [10, 20], 0.7)
        [0.7, 0.7]
    """
    _check_fit(values, sizes, target, how)
    cap = max(cap, target)
    weight = sum(sizes)
    if not weight or min(values) == max(values):
        return [target] * len(values)

    if how == "scale":
        values = [v if v > max(values) * _TINY else 0.0 for v in values]

    def mean(shares: Sequence[float]) -> float:
        return math.fsum(n * s for n, s in zip(sizes, shares, strict=True)) / weight

    def moved(c: float) -> list[float]:
        return [min(max(v + c if how == "shift" else v * c, 0.0), cap) for v in values]

    still = moved(0.0 if how == "shift" else 1.0)
    if abs(mean(still) - target) <= 1e-15:
        return still
    if how == "shift":
        return moved(_bisect(lambda c: mean(moved(c)), -max(values), cap - min(values), target))
    full = [cap if v > 0 else 0.0 for v in values]
    if mean(full) < target:
        return fit(full, sizes, target, cap)  # zeros cannot be scaled up
    least = min(v for v in values if v > 0)
    return moved(_bisect(lambda c: mean(moved(c)), 0.0, cap / least, target))


def _check_fit(values: Sequence[float], sizes: Sequence[int], target: float, how: str) -> None:
    if len(values) != len(sizes):
        raise ValueError(f"values and sizes must have the same length; got {len(values)} and {len(sizes)}")
    if not values:
        raise ValueError("values must not be empty")
    if not all(math.isfinite(v) for v in values) or min(sizes) < 0:
        raise ValueError(f"values must be finite and sizes not negative; got {list(values)} and {list(sizes)}")
    if not 0.0 <= target <= 1.0:
        raise ValueError(f"target must be between 0 and 1; got {target}")
    if how == "scale" and min(values) < 0:
        raise ValueError(f"values must not be negative when they are scaled; got {min(values)}")


def _bisect(rising: Callable[[float], float], low: float, high: float, target: float) -> float:
    for _ in range(200):
        middle = (low + high) / 2
        if not low < middle < high:
            break
        low, high = (middle, high) if rising(middle) < target else (low, middle)
    return high

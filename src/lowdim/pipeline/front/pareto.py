"""The Pareto front of some points, and the one to take within a budget."""

from __future__ import annotations

from collections.abc import Sequence


def on_front(points: Sequence[Sequence[float]]) -> list[bool]:
    """Tell for each point whether no other is at least as good in every coordinate and better in one; less is better.

    Equal points do not beat each other: all of them are on the front, or none is.

    Example:
        >>> on_front([(1, 9), (2, 5), (3, 5), (4, 1)])
        [True, True, False, True]
    """
    return [not any(_beats(other, point) for other in points) for point in points]


def _beats(one: Sequence[float], other: Sequence[float]) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def best_within(points: Sequence[tuple[float, float]], budget: float) -> int | None:
    """Return the index of the point (cost, loss) of least loss whose cost is within a budget; ``None`` if none is.

    Of equal losses the cheaper wins, of equal points the first.

    Example:
        >>> best_within([(1, 9), (2, 5), (4, 1)], budget=3)
        1
    """
    fitting = [index for index, (cost, _) in enumerate(points) if cost <= budget]
    return min(fitting, key=lambda index: (points[index][1], points[index][0]), default=None)

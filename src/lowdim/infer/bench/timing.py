"""Times of several contestants, taken in turn so that what disturbs one disturbs all."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle
from typing import Any, TypeVar

import torch

Key = TypeVar("Key", bound=Hashable)
STREAMED = 128 * 2**20
"""Bytes of distinct weights that a contestant passes through: several times what a cache holds."""
ROUNDS, FEWEST = 15, 3
"""Turns of each contestant, and those that are taken though the time is up: so many that a median means something."""
_TURN = 2e-2  # seconds of a turn, where there are calls enough: the first call after another contestant starts cold


@contextmanager
def threads(count: int | None) -> Iterator[int]:
    """Let torch, and with it the kernels here, use so many threads meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if count is None else count)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


class Deadline:
    """The time that a whole measurement may take, for those of its parts whose amount can be chosen.

    Args:
        seconds: from now on.

    Attributes:
        seconds: as given.

    Example:
        >>> Deadline().left(0.5), Deadline(0).left()
        (inf, 0.0)
    """

    def __init__(self, seconds: float = math.inf) -> None:
        self.seconds = seconds
        self._begun = time.monotonic()

    def left(self, share: float = 1.0) -> float:
        """Return the seconds until this share of the time has gone, at least 0."""
        return max(0.0, self._begun + share * self.seconds - time.monotonic())


def copies(weight_bytes: int) -> int:
    """Return how many copies of a matrix stream from memory rather than from a cache.

    Example:
        >>> copies(32 * 2**20), copies(2**30)
        (4, 2)
    """
    return max(2, math.ceil(STREAMED / max(weight_bytes, 1)))


def interleaved(
    contestants: Mapping[Key, Sequence[Callable[[], object]]], rounds: int = ROUNDS, seconds: float = math.inf
) -> dict[Key, float]:
    """Return the median seconds per call of every contestant, measured A B C A B C ...

    Args:
        contestants: the calls that each goes through, over and over; all do the same on distinct memory.
        rounds: turns of each.
        seconds: after which no round begins that is not one of the `FEWEST`.

    Example:
        >>> sorted(interleaved({"a": [lambda: sum(range(100))], "b": [lambda: None]}, rounds=3))
        ['a', 'b']
    """
    deadline = Deadline(seconds)
    runs = {key: cycle(calls) for key, calls in contestants.items()}
    turns = {key: _calls_per_turn(calls) for key, calls in contestants.items()}
    times: dict[Key, list[float]] = {key: [] for key in contestants}
    for number in range(rounds):
        if number >= FEWEST and not deadline.left():
            break
        for key, run in runs.items():
            todo = [next(run) for _ in range(turns[key])]
            begun = time.perf_counter()
            for call in todo:
                call()
            times[key].append((time.perf_counter() - begun) / len(todo))
    return {key: statistics.median(values) for key, values in times.items()}


def _calls_per_turn(calls: Sequence[Callable[[], object]]) -> int:
    """Return how many calls make a turn that the clock can measure; warms every one of them up."""
    begun = time.perf_counter()
    for call in calls:
        call()
    once = (time.perf_counter() - begun) / len(calls)
    return max(1, min(len(calls), math.ceil(_TURN / max(once, 1e-9))))


def rates(times: Sequence[float]) -> dict[str, Any]:
    """Return tokens per second at the median, and the middle half of the single tokens' rates.

    Example:
        >>> rates([0.01, 0.02, 0.04])
        {'tokens_per_s': 50.0, 'quartiles': [25.0, 100.0]}
    """
    ordered = sorted(times)
    low, high = ordered[len(ordered) // 4], ordered[(3 * len(ordered)) // 4]
    return {
        "tokens_per_s": round(1 / statistics.median(ordered), 2),
        "quartiles": [round(1 / high, 2), round(1 / low, 2)],
    }

"""The curves of a log: what every step said, thinned so that a page holds them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from lowdim.report.files import beside
from lowdim.train.pretrain.log import read

Json = Mapping[str, Any]
Points = list[tuple[float, float]]

MOST = 200
"""Points of a curve; of more steps each point is the mean of some neighbours."""


def log_of(out: Path) -> list[dict[str, Any]]:
    """Return the lines of ``OUT.log.jsonl``; none where it is not there, since a run may be moved."""
    path = beside(out, ".log.jsonl")
    return read(path) if path.exists() else []


def curve(lines: Iterable[Json], key: str) -> Points:
    """Return (step, value) of the lines that have a number, thinned.

    Example:
        >>> curve([{"step": 1, "loss": 3.0}, {"step": 1, "validation_loss": 2.9}, {"step": 2, "loss": 2.0}], "loss")
        [(1, 3.0), (2, 2.0)]
    """
    found = [(line["step"], line[key]) for line in lines if key in line and math.isfinite(line[key])]
    return thinned(found)


def thinned(points: Sequence[tuple[float, float]]) -> Points:
    """Return at most `MOST` points, each the mean of its share and at the last step of it.

    Example:
        >>> found = thinned([(step, float(step % 2)) for step in range(1, 2001)])
        >>> len(found), found[0], found[-1]
        (200, (10, 0.5), (2000, 0.5))
    """
    size = math.ceil(len(points) / MOST)
    parts = [points[start : start + size] for start in range(0, len(points), size)] if size else []
    return [(part[-1][0], fmean(value for _, value in part)) for part in parts]


def neighbours(count: int) -> str:
    """Say of how many steps a point is the mean, or nothing.

    Example:
        >>> neighbours(150), neighbours(1000)
        ('', ' A point is the mean of 5 steps.')
    """
    size = math.ceil(count / MOST)
    return f" A point is the mean of {size} steps." if size > 1 else ""

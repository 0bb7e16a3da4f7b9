"""What the runs of a sweep left: the curves of their losses, their diagnoses, the number that they are judged by."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from lowdim.core.errors import CheckpointError
from lowdim.core.files import read_json
from lowdim.report.draw import words
from lowdim.report.pretrain.curves import Points, curve, log_of

Json = Mapping[str, Any]

_LEADING = ("validation.loss", "*loss*", "*perplexity*", "*accuracy*")
_LESS, _MORE = re.compile(r"loss|perplexity|nll|error"), re.compile(r"accuracy")
_RATE = re.compile(r"(^|[-._])(lr|learning[-_]rate)$")


class Best(NamedTuple):
    """The row of the table with the best mean.

    Attributes:
        row: of the table.
        value: its mean.
    """

    row: Json
    value: float


def measure(held: Json) -> str | None:
    """Return the number that rows are compared by: the first of the report, else a loss, a perplexity, an accuracy."""
    names = list(dict.fromkeys(name for row in held["table"] for name in row["mean"]))
    patterns = [*held["recipe"]["report"], *_LEADING]
    return next((name for pattern in patterns for name in names if fnmatchcase(name, pattern)), None)


def better(name: str) -> int:
    """Return -1 where less of a number is better, 1 where more is, 0 where nobody knows.

    Example:
        >>> better("validation.loss"), better("test.accuracy"), better("stages")
        (-1, 1, 0)
    """
    return -1 if _LESS.search(name) else 1 if _MORE.search(name) else 0


def best(rows: Sequence[Json], name: str) -> Best | None:
    """Return the row with the best mean; None where none has one, or nobody knows which way is better."""
    known = [Best(row, row["mean"][name]) for row in rows if row["mean"].get(name) is not None]
    return max(known, key=lambda each: better(name) * each.value, default=None) if better(name) else None


def rate_axis(held: Json) -> str | None:
    """Return the axis of the grid that is a learning rate."""
    axes = (axis for grid in held["recipe"]["grid"] for axis in grid)
    return next((axis for axis in axes if _RATE.search(axis)), None)


def name_of(axes: Json) -> str:
    """Return a point of the grid in words.

    Example:
        >>> name_of({"optimizer.lr": 0.01, "--seed": 1})
        'optimizer.lr 0.01, seed 1'
    """
    return ", ".join(f"{words.clean(key).lstrip('-')} {words.clean(value)}" for key, value in axes.items())


def values_of(axes: Json) -> str:
    """Return the values of a point of the grid alone: short enough for a picture.

    Example:
        >>> values_of({"optimizer.lr": 0.01, "--seed": 1})
        '0.01 · 1'
    """
    return " · ".join(words.clean(value) for value in axes.values())


def losses(out: Path, run: Json) -> tuple[Points, Points, str]:
    """Return the training loss, the validation loss and what they are counted in.

    They are those of the log of a run that trains on text, which an unfinished run has too; else those of a sparse
    training by its epochs.
    """
    place = out / run["name"] / "out"
    lines = log_of(place)
    if lines:
        return curve(lines, "loss"), curve(lines, "validation_loss"), "step"
    try:
        points = read_json(place / "training.json")["members"]["sparse"]["curve"]
        return [(point["epoch"], point["loss"]) for point in points], [], "epoch"
    except (CheckpointError, KeyError, TypeError):
        return [], [], "step"


def diagnosis(out: Path, run: Json, command: str) -> dict[str, Any] | None:
    """Return the diagnosis of a run under the run's name: what it is, or what lies beside it as ``diagnosis.json``."""
    path = out / run["name"] / ("result.json" if command == "diagnose" else "diagnosis.json")
    try:
        found = read_json(path)
        last = found["models"][-1] if "models" in found else found
        return {**last, "model": values_of(run["axes"]).replace("/", "-")}
    except (CheckpointError, KeyError, IndexError, TypeError):
        return None

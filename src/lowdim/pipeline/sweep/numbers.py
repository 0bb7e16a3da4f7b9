"""The numbers that runs report, and the table of their means and spreads."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from lowdim.core.errors import CheckpointError
from lowdim.core.files import read_json
from lowdim.pipeline.sweep.place import Place

_ASIDE = {"recipe", "layers", "versions", "hashes", "machine", "data", "protocol", "schema", "seed", "model", "axes"}
_MOST_ENTRIES = 24  # of a mapping that is looked into: one with more is a list of layers, or of blocks
_LOSSES = re.compile(r"loss|perplexity|nll")
_MARK = "lowdim"  # a key of every JSON file of this program's own in an output directory, or of its versions


def numbers(place: Place) -> dict[str, float]:
    """Return what a run reports, by dotted name.

    They come from ``result.json``, from the JSON files that the command's directory holds of its own, and from the
    sidecar ``out.run.json``; what is a setting, or of one layer or block, is left aside.
    """
    files = [place.result, *sorted(place.out.glob("*.json")), place.out.with_name("out.run.json")]
    found: dict[str, float] = {}
    for file in files:
        content = _read(file)
        if file.parent != place.out or _MARK in content or _MARK in (content.get("versions") or ()):
            found |= dict(_flat(content))
    return found


def _read(file: Path) -> dict[str, Any]:
    try:
        return read_json(file) if file.exists() else {}
    except CheckpointError:
        return {}


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yield the numbers of nested mappings with their dotted names.

    Example:
        >>> list(_flat({"loss": 2.5, "recipe": {"lr": 1}, "members": {"dense": {"accuracy": 1}}, "done": True}))
        [('loss', 2.5), ('members.dense.accuracy', 1)]
    """
    for key, value in content.items():
        name = f"{prefix}{key}"
        if key in _ASIDE or isinstance(value, bool):
            continue
        if isinstance(value, Mapping):
            if len(value) <= _MOST_ENTRIES:
                yield from _flat(value, f"{name}.")
        elif isinstance(value, int | float):
            yield name, value


@dataclass
class Row:
    """A row of the table: runs that differ in one axis alone, usually the seed.

    Attributes:
        axes: what they share.
        states: what became of each.
        values: what those that finished report, by name.
        errors: what the others said, each once.
    """

    axes: dict[str, Any]
    states: list[str] = field(default_factory=list)
    values: dict[str, list[float]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)

    @property
    def state(self) -> str:
        """Return in words how many finished, and what became of the others.

        Example:
            >>> Row({}, ["finished", "finished", "diverged"]).state, Row({}, ["finished"]).state
            ('2 of 3, 1 diverged', '1')
        """
        done = self.states.count("finished")
        others = [f"{self.states.count(s)} {s}" for s in dict.fromkeys(self.states) if s != "finished"]
        return ", ".join([f"{done} of {len(self.states)}", *others]) if others else str(done)

    def mean(self, name: str) -> float | None:
        """Return the mean of a number; ``None`` where no run has it."""
        return fmean(self.values[name]) if self.values.get(name) else None

    def spread(self, name: str) -> float | None:
        """Return the standard deviation between runs, n - 1 in the denominator; ``None`` for fewer than two."""
        return stdev(self.values[name]) if len(self.values.get(name, ())) > 1 else None


@dataclass(frozen=True)
class Sheet:
    """The table: axes, names of the numbers, rows; and what was asked for that no finished run reports."""

    axes: list[str]
    names: list[str]
    rows: list[Row]
    absent: list[str] = field(default_factory=list)


def sheet(places: Sequence[Place], over: str | None, report: Sequence[str]) -> Sheet:
    """Put what runs report into a table.

    A run that finished has diverged where it says so itself, and where a loss, a perplexity, or a picked number is NaN
    or infinite.

    Args:
        places: the runs.
        over: the axis that rows are averaged over.
        report: which numbers, with ``*`` for any; if empty, those that are not the same in all finished runs.
    """
    axes = list(dict.fromkeys(key for place in places for key in place.run.axes if key != over))
    rows: dict[str, Row] = {}
    seen: dict[str, list[float]] = {}
    for place in places:
        shared = {key: value for key, value in place.run.axes.items() if key != over}
        row = rows.setdefault(repr(shared), Row(shared))
        state, error = place.state(), str(place.record().get("error", ""))
        reported = numbers(place) if state == "finished" else {}
        found = _picked(reported, report)
        if "diverged.step" in reported:  # as of pre-training
            state, error, found = "diverged", error or _lost(reported), {}
        elif wrong := [name for name, value in found.items() if not math.isfinite(value)]:
            if bad := [name for name in wrong if report or _LOSSES.search(name)]:
                state, error, found = "diverged", f"{bad[0]} is {found[bad[0]]}", {}
            found = {name: value for name, value in found.items() if name not in wrong}
        row.states.append(state)
        if error and error not in row.errors:
            row.errors.append(error)
        for name, value in found.items():
            row.values.setdefault(name, []).append(value)
            seen.setdefault(name, []).append(value)
    names = [name for name, values in seen.items() if report or len(set(values)) > 1 or len(values) == 1]
    finished = any("finished" in row.states for row in rows.values())
    absent = [one for one in report if finished and not any(fnmatchcase(name, one) for name in seen)]
    return Sheet(axes, names, list(rows.values()), absent)


def _lost(found: Mapping[str, float]) -> str:
    """Return what is said of a run that reports that it diverged.

    Example:
        >>> _lost({"diverged.step": 40, "diverged.loss": 9.57, "diverged.uniform": 5.7}), _lost({"diverged.step": 40})
        ('the loss ends at 9.57, above the 5.7 of a uniform guess', 'training diverged at step 40')
    """
    if "diverged.uniform" in found:
        loss, uniform = found["diverged.loss"], found["diverged.uniform"]
        return f"the loss ends at {loss:.4g}, above the {uniform:.4g} of a uniform guess"
    return f"training diverged at step {found['diverged.step']:.0f}"


def _picked(found: dict[str, float], report: Sequence[str]) -> dict[str, float]:
    if not report:
        return found
    return {name: found[name] for pattern in report for name in found if fnmatchcase(name, pattern)}

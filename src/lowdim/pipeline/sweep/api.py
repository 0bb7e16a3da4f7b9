"""`lowdim sweep`: a grid of runs of any command, what is finished left alone, and one table of what they report."""

from __future__ import annotations

import csv
import io
import json
import os
import platform
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from lowdim.core.errors import LowdimError, RecipeError
from lowdim.pipeline.sweep.command import Command
from lowdim.pipeline.sweep.execute import execute
from lowdim.pipeline.sweep.forecast import said as forecast
from lowdim.pipeline.sweep.numbers import Sheet, sheet
from lowdim.pipeline.sweep.place import Place
from lowdim.pipeline.sweep.recipe import SweepRecipe

SCHEMA = 1


class Sweep:
    """The runs of a recipe in a directory.

    Args:
        recipe: what is run over what grid.
        command: what is known of its command.
        out: the directory; each run has one of its own in it.

    Raises:
        RecipeError: a run would be refused by the command, or two would be in one directory; nothing was run.
        LowdimError: a directory holds a run of other arguments.
    """

    def __init__(self, recipe: SweepRecipe, command: Command, out: Path) -> None:
        self.recipe, self.out, self._command = recipe, Path(out).absolute(), command
        self.places = [Place(run, self.out / run.name, command) for run in recipe.runs(command)]
        for place in self.places:
            place.check()

    def plan(self) -> list[tuple[int, str, str, str]]:
        """Return number, name, state and command line of every run."""
        return [
            (each.run.index, each.run.name, each.state(), shlex.join(["lowdim", *each.words()])) for each in self.places
        ]

    def chosen(self, index: int | None) -> list[Place]:
        """Return all runs, or the one of that number.

        Raises:
            RecipeError: there is none.
        """
        if index is None:
            return self.places
        if not 0 <= index < len(self.places):
            raise RecipeError(f"--index must be from 0 to {len(self.places) - 1}, the runs of this grid; got {index}.")
        return [self.places[index]]

    def forecast(self, index: int | None = None) -> str:
        """Return how long the runs take that are not finished, in words; empty where all are.

        Of a command that can time its steps the cheapest and the dearest are timed, which takes a while.

        Raises:
            RecipeError: a wrong number.
        """
        left = [place for place in self.chosen(index) if place.state() != "finished"]
        done = self._seconds()
        if not left or done:
            return f"From {len(done)} finished before: {_hours(done, len(left), 1)}." if left else ""
        try:
            seconds = self._command.seconds([place.run.arguments for place in left])
        except LowdimError:  # which the run itself will say
            seconds = None
        return forecast(seconds, len(left))

    def _seconds(self) -> list[float]:
        """Return those of the runs that are finished."""
        records = [place.record() for place in self.places]
        return [r["seconds"] for r in records if r.get("state") == "finished" and "seconds" in r]

    def run(self, jobs: int = 1, index: int | None = None, announce: Callable[[str], None] = lambda _: None) -> bool:
        """Run what is not finished, and write the table after each; return whether all of it is finished.

        Args:
            jobs: how many at a time.
            index: only the run of that number.
            announce: told of the plan and its hours, of each run that ends, and after the first of what is left.

        Raises:
            RecipeError: a wrong number.
            KeyboardInterrupt: Ctrl-C; what was running goes on next time.
        """
        if jobs < 1:
            raise RecipeError(f"--jobs must be at least 1; got {jobs}.")
        chosen = self.chosen(index)
        todo = [place for place in chosen if place.state() != "finished"]
        counted = f"{len(chosen)} run{'s' * (len(chosen) != 1)} of lowdim {self.recipe.command}"
        announce(f"{counted}, {len(chosen) - len(todo)} finished, {len(todo)} to run, {jobs} at a time.")
        self.out.mkdir(parents=True, exist_ok=True)
        seconds = self._seconds()
        if todo and seconds:
            announce(f"From {len(seconds)} finished before: {_hours(seconds, len(todo), jobs)}.")
        elif todo:
            announce(self.forecast(index))
        ended: list[str] = []

        def told(place: Place, state: str, took: float) -> None:
            ended.append(state)
            said = "" if state == "finished" else f": {place.record()['error']}"
            announce(f"[{len(ended)}/{len(todo)}] {place.run.name}: {state} after {took:.0f} s{said}")
            if state == "finished":
                seconds.append(took)
                if len(seconds) == 1 and len(todo) > len(ended):
                    announce(f"From the first: {_hours(seconds, len(todo) - len(ended), jobs)}.")
            self.write()

        execute(todo, jobs, told, announce)
        self.write()
        states = sheet(chosen, None, self.recipe.report).rows
        return all(state == "finished" for row in states for state in row.states)

    def sheet(self) -> Sheet:
        """Return the table of what all runs so far report."""
        return sheet(self.places, self.recipe.repeated(), self.recipe.report)

    def write(self) -> None:
        """Write ``sweep.json`` and ``table.csv``."""
        found = self.sheet()
        runs = [
            {"index": place.run.index, "name": place.run.name, **place.record(), "state": place.state()}
            for place in self.places
        ]
        rows = [
            {
                "axes": row.axes,
                "runs": row.state,
                "errors": row.errors,
                "mean": {name: row.mean(name) for name in found.names},
                "spread": {name: row.spread(name) for name in found.names},
            }
            for row in found.rows
        ]
        content: dict[str, Any] = {"schema": SCHEMA, "recipe": self.recipe.to_dict(), "runs": runs, "table": rows}
        _replace(self.out / "sweep.json", json.dumps(content, indent=2) + "\n")
        _replace(self.out / "table.csv", _csv(found))


def _hours(seconds: Sequence[float], left: int, jobs: int) -> str:
    """Say how long the runs that are left take.

    Example:
        >>> _hours([1800.0], 5, 2)
        '5 runs of about 30.0 min, 2 at a time, 1.5 h left'
    """
    each = fmean(seconds)
    hours = -(-left // jobs) * each / 3600
    return f"{left} run{'s' * (left != 1)} of about {each / 60:.1f} min, {jobs} at a time, {hours:.1f} h left"


def _replace(path: Path, text: str) -> None:
    """Write a file in the place of an older one, while the jobs of an array may all be doing so."""
    temporary = path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _csv(found: Sheet) -> str:
    """Return a table with two columns per number, its mean and its spread."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*found.axes, "runs", *(head for name in found.names for head in (name, f"{name} (sd)"))])
    for row in found.rows:
        cells = [cell for name in found.names for cell in (row.mean(name), row.spread(name))]
        writer.writerow([*(row.axes.get(axis, "") for axis in found.axes), row.state, *cells])
    return text.getvalue()

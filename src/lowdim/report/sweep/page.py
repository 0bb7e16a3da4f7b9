"""The page of a sweep: which settings are best, the curves of all runs, the table, and what did not finish."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lowdim
from lowdim.core.recipe.text import dump
from lowdim.report.diagnose.page import side_by_side
from lowdim.report.diagnose.pictures import pictures as of_blocks
from lowdim.report.diagnose.pictures import short_names
from lowdim.report.draw import words
from lowdim.report.environment import templates
from lowdim.report.files import check_schema, result, whole
from lowdim.report.sweep.found import best, diagnosis, measure, name_of
from lowdim.report.sweep.pictures import pictures, sensitivities

Json = Mapping[str, Any]

FILE, SCHEMA = "sweep.json", 1
_MOST = 6  # numbers in the table; table.csv holds all
_STATES = {
    "new": "not begun",
    "running": "not finished: it is under way, or was killed",
    "failed": "failed",
    "diverged": "diverged",
}


def page(out: Path) -> str:
    """Return the page of a directory.

    Raises:
        CheckpointError: its ``sweep.json`` is damaged, or of another version.
    """
    held = result(out / FILE, "sweep", "runs")
    check_schema(held, out / FILE, SCHEMA)
    with whole(FILE):
        return render(held, out)


def render(held: Json, out: Path) -> str:
    """Return the page as text.

    Args:
        held: what ``sweep.json`` holds.
        out: the directory, in which the runs have theirs.
    """
    recipe = held["recipe"]
    runs = [diagnosis(out, run, recipe["command"]) for run in held["runs"]]
    models = [model for model in runs if model is not None]
    return (
        templates()
        .get_template("sweep.html")
        .render(
            version=lowdim.__version__,
            command=words.clean(recipe["command"]),
            count=len(held["runs"]),
            sentence=sentence(held),
            edges=edges(held),
            unfinished=unfinished(held),
            pictures=pictures(held, out),
            **_table(held),
            models=len(models),
            halves=side_by_side(models, short_names(models)) if models else None,
            blocks=of_blocks(models) if models else [],
            recipe=dump(dict(recipe)),
            repeat=shlex.join(["lowdim", "sweep", "--recipe", "sweep.yaml", "--out", out.name]),
            seconds=words.seconds(sum(run.get("seconds") or 0.0 for run in held["runs"])),
        )
    )


def sentence(held: Json) -> str:
    """Return how many runs finished, and the best settings."""
    states = [run["state"] for run in held["runs"]]
    found = f"{states.count('finished')} of {words.plural(len(states), 'run')} finished."
    name = measure(held)
    if name is None or (top := best(held["table"], name)) is None:
        return found
    spread = top.row["spread"].get(name)
    value = _number(top.value) + ("" if spread is None else f" ± {_number(spread, 2)}")
    settings = name_of(top.row["axes"]) or "the one setting"
    return f"{found} Best: {settings}, with {words.clean(name)} {value}."


def edges(held: Json) -> list[str]:
    """Return what to say of settings whose best learning rate is an end of the grid."""
    return [
        f"{each.name + ': the' if each.name else 'The'} best learning rate, {words.tick(each.best)}, is the "
        f"{each.edge} of the grid. A better one may lie beyond: widen the grid."
        for each in sensitivities(held)
        if each.best is not None and each.edge
    ]


def unfinished(held: Json) -> list[str]:
    """Return a line for every run that did not finish, with what it said."""
    lines = []
    for run in held["runs"]:
        if run["state"] != "finished":
            said = words.clean(run.get("error") or "")
            state = _STATES.get(run["state"], words.clean(run["state"]))
            lines.append(f"{name_of(run['axes'])}: {state}{'. ' + said if said else ''}")
    not_numbers = [
        f"{name_of(row['axes'])}: {words.clean(error)}"
        for row in held["table"]
        for error in row["errors"]
        if not any(run.get("error") == error for run in held["runs"])
    ]
    return lines + not_numbers


def _table(held: Json) -> dict[str, Any]:
    """Return heads and rows: axes, runs, and the numbers, that which rows are compared by first."""
    first = measure(held)
    every = list(dict.fromkeys(name for row in held["table"] for name in row["mean"]))
    names = sorted(every, key=lambda name: name != first)[:_MOST]
    axes = list(dict.fromkeys(axis for row in held["table"] for axis in row["axes"]))
    top = None if first is None else best(held["table"], first)
    return {
        "heads": [*(words.clean(axis).lstrip("-") for axis in axes), "runs", *(words.clean(name) for name in names)],
        "rows": [
            {
                "best": top is not None and row is top.row,
                "cells": [
                    *(words.clean(row["axes"].get(axis, "")) for axis in axes),
                    words.clean(row["runs"]),
                    *(_cell(row, name) for name in names),
                ],
            }
            for row in held["table"]
        ],
        "more": len(every) - len(names),
        "axes": len(axes),
    }


def _cell(row: Json, name: str) -> str:
    mean, spread = row["mean"].get(name), row["spread"].get(name)
    if spread is None:
        return _number(mean)
    return f"{_number(mean)} ± {_number(spread, 2)}"


def _number(value: float | None, digits: int = 5) -> str:
    """Write a number in more digits than elsewhere, since settings may lie close together.

    Example:
        >>> _number(4.41234567), _number(0.0070711, 2), _number(27460755992.6), _number(None)
        ('4.4123', '0.0071', '2.75e10', '–')
    """
    text = "e" if value is None else f"{value:.{digits}g}"
    return words.number(value) if "e" in text else words.signless(text)

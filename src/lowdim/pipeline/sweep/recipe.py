"""The recipe of a sweep: a command, its fixed arguments, and the grid of the others."""

from __future__ import annotations

import hashlib
import itertools
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator

from lowdim.core.errors import RecipeError
from lowdim.core.recipe.base import Document, Strings
from lowdim.pipeline.sweep.command import Command

_LONGEST = 120  # characters of a directory's name


def _words(value: object) -> object:
    if isinstance(value, str):
        return tuple(shlex.split(value))
    return tuple(str(word) for word in value) if isinstance(value, list) else value


def _grids(value: object) -> object:
    """Return a grid, or a list of grids that are run one behind the other, as a tuple of mappings of tuples."""
    grids = value if isinstance(value, list | tuple) and value else [value]
    made = []
    for grid in grids:
        if not isinstance(grid, Mapping) or not grid:
            raise RecipeError(f"must be a mapping such as '--seed: [0, 1, 2]', or a list of them, got {value!r}")
        for key, values in grid.items():
            if not isinstance(values, list | tuple) or not values:
                raise RecipeError(f"{key} must be a list of at least one value, got {values!r}")
        made.append({str(key): tuple(values) for key, values in grid.items()})
    return tuple(made)


@dataclass(frozen=True)
class Run:
    """One run of a sweep.

    Attributes:
        index: its number, from 0.
        name: that of its directory.
        axes: its point in the grid.
        arguments: what the command is given, where the results go left out.
    """

    index: int
    name: str
    axes: Mapping[str, Any]
    arguments: tuple[str, ...]


class SweepRecipe(Document):
    """What is run, over what grid, and what is reported.

    Attributes:
        command: the command's word, such as ``prune``.
        arguments: what every run is given, as a list or as one would type it.
        grid: values by flag (``--seed``), by key of ``--set`` (``optimizer.lr``) or by argument (``MODEL``); every
            combination is run. Or a list of such mappings.
        over: the axis that the table takes mean and spread over; the one called ``seed`` if not given.
        report: the numbers of the table by their dotted names, with ``*`` for any; those that differ if not given.

    Raises:
        RecipeError: an unknown key, an empty grid, a value that is no list.

    Example:
        >>> grid = {"--seed": [0, 1], "pattern": ["2:4"]}
        >>> recipe = SweepRecipe(command="prune", arguments="m --samples 8", grid=grid)
        >>> [run.name for run in recipe.runs(Command("prune", "OUT", sets=True))]
        ['seed=0,pattern=2:4', 'seed=1,pattern=2:4']
    """

    command: str
    arguments: Annotated[tuple[str, ...], BeforeValidator(_words)] = ()
    grid: Annotated[tuple[dict[str, tuple[Any, ...]], ...], BeforeValidator(_grids)]
    over: str | None = None
    report: Strings = ()

    @property
    def axes(self) -> list[str]:
        """The keys of all grids, in order."""
        return list(dict.fromkeys(key for grid in self.grid for key in grid))

    def repeated(self) -> str | None:
        """Return the axis that rows are averaged over; ``None`` where there is none.

        Raises:
            RecipeError: ``over`` is no axis.
        """
        if self.over is not None and self.over not in self.axes:
            raise RecipeError(f"over must be an axis of the grid ({', '.join(self.axes)}), got {self.over!r}.")
        seeds = (axis for axis in self.axes if re.search(r"(^|[-._])seed$", axis))
        return self.over or next(seeds, None)

    def runs(self, command: Command) -> list[Run]:
        """Return every run, checked.

        Raises:
            RecipeError: the command would refuse it, or two runs would have one directory.
        """
        command.check(self.arguments)
        self.repeated()
        points = [
            dict(zip(grid, values, strict=True)) for grid in self.grid for values in itertools.product(*grid.values())
        ]
        found: dict[str, Run] = {}
        for index, axes in enumerate(points):
            name = _name(axes)
            if name in found:
                raise RecipeError(
                    f"grid: runs {found[name].index} and {index} would both be in the directory {name!r}. Take one out."
                )
            arguments = command.arguments(self.arguments, axes)
            try:
                command.parse([*arguments, *command.results("OUT", "FILE")])
            except RecipeError as error:
                raise RecipeError(f"run {index} ({name}): {error}") from error
            found[name] = Run(index, name, axes, tuple(arguments))
        return list(found.values())


def _name(axes: Mapping[str, Any]) -> str:
    """Return a directory's name for a point of the grid.

    Example:
        >>> _name({"--sparsity": 0.5, "MODEL": "runs/a b"})
        'sparsity=0.5,MODEL=runs-a-b'
    """
    parts = (f"{key.lstrip('-')}={value}" for key, value in axes.items())
    name = re.sub(r"[^\w.,=+:%-]+", "-", ",".join(parts)).strip("-")
    if len(name) > _LONGEST:
        name = f"{name[: _LONGEST - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return name

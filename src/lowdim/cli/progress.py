"""Progress with the time left: bars on a terminal, elsewhere a few lines for each stage."""

from __future__ import annotations

import os
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars

from lowdim.core.progress import Progress, Silent, Stage

_PAUSE = 30.0  # seconds between two lines that say how far a stage is
_MEMORY = 3600.0  # seconds that the time left is guessed from: a single step may take minutes


def terminal(quiet: bool = False) -> Progress:
    """Return progress for stderr; silent if asked to be, and in all processes of a parallel run but one."""
    if quiet or os.environ.get("RANK", "0") != "0":
        return Silent()
    console = Console(stderr=True, highlight=False)
    return _Terminal(console) if console.is_terminal and not console.is_dumb_terminal else _Lines(console)


class _Lines:
    """For logs: a line when a stage starts, one when it ends, and now and then one that says how far it is."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def stage(self, name: str, total: int, unit: str = "") -> Stage:
        return _LineStage(self, name, total, unit)

    def log(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)


class _LineStage:
    def __init__(self, owner: _Lines, name: str, total: int, unit: str) -> None:
        self._owner, self._name, self._total, self._unit = owner, name, total, unit
        self._done, self._start, self._said = 0, 0.0, 0.0

    def __enter__(self) -> Self:
        self._start = self._said = time.monotonic()
        self._owner.log(f"{self._name}: {f'{self._total} {self._unit}'.strip()} ...")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        seconds = time.monotonic() - self._start
        if kind is None:
            self._owner.log(f"{self._name}: done in {seconds:.1f} s")
        else:
            self._owner.log(f"{self._name}: stopped at {self._done} of {self._total} after {seconds:.1f} s")

    def advance(self, amount: int = 1) -> None:
        self._done += amount
        now = time.monotonic()
        if now - self._said >= _PAUSE and self._done < self._total:
            self._said = now
            left = (now - self._start) / self._done * (self._total - self._done)
            self._owner.log(f"{self._name}: {self._done} of {self._total}, about {left:.0f} s left")

    def log(self, text: str) -> None:
        self._owner.log(text)


def _columns(width: int) -> list[ProgressColumn]:
    """Return what a terminal of this width has room for: first the time left, then the bar, then the rest."""
    name, done = TextColumn("{task.description}"), MofNCompleteColumn()
    if width < 60:
        return [name, done, TimeRemainingColumn(compact=True)]
    if width < 90:
        return [name, BarColumn(bar_width=10), done, TimeRemainingColumn(), TextColumn("left")]
    unit = TextColumn("{task.fields[unit]}")
    rest = [TimeElapsedColumn(), TextColumn("gone,"), TimeRemainingColumn(), TextColumn("left")]
    return [name, BarColumn(bar_width=24), done, unit, *rest]


class _Terminal:
    """For people: stages may nest; each has its bar."""

    def __init__(self, console: Console) -> None:
        self._bars = Bars(*_columns(console.width), console=console, speed_estimate_period=_MEMORY)
        self._open = 0

    def stage(self, name: str, total: int, unit: str = "") -> Stage:
        return _BarStage(self, name, total, unit)

    def log(self, text: str) -> None:
        self._bars.console.print(text, markup=False)

    def open(self, name: str, total: int, unit: str) -> int:
        if not self._open:
            self._bars.start()
        self._open += 1
        return self._bars.add_task(escape(name), total=total, unit=unit)

    def advance(self, task: int, amount: int) -> None:
        self._bars.advance(task, amount)  # type: ignore[arg-type]

    def close(self, task: int) -> None:
        self._bars.stop_task(task)  # type: ignore[arg-type]
        self._open -= 1
        if not self._open:
            self._bars.stop()
            for finished in list(self._bars.task_ids):
                self._bars.remove_task(finished)


class _BarStage:
    def __init__(self, owner: _Terminal, name: str, total: int, unit: str) -> None:
        self._owner, self._name, self._total, self._unit = owner, name, total, unit
        self._task = -1

    def __enter__(self) -> Self:
        self._task = self._owner.open(self._name, self._total, self._unit)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._owner.close(self._task)

    def advance(self, amount: int = 1) -> None:
        self._owner.advance(self._task, amount)

    def log(self, text: str) -> None:
        self._owner.log(text)

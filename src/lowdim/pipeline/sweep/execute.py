"""Runs as processes of their own, so many at a time, which end when the sweep does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from lowdim.pipeline.sweep.child import PARENT
from lowdim.pipeline.sweep.place import Place
from lowdim.runs.lock import DirectoryLock, OutputError

PROGRAM = (sys.executable, "-m", "lowdim.pipeline.sweep.child")
_PATIENCE = 2.0  # seconds
_PAUSE = 0.05  # seconds between two looks at who has ended


@dataclass
class _Child:
    place: Place
    process: subprocess.Popen[bytes]
    lock: DirectoryLock
    begun: float


def execute(
    places: Sequence[Place], jobs: int, told: Callable[[Place, str, float], None], announce: Callable[[str], None]
) -> None:
    """Run runs, ``jobs`` at a time, each with its share of the threads; one that fails stops no other.

    Args:
        places: what is to be run, in order; one that another process is running is left to it.
        jobs: how many at a time.
        told: called with each run that has ended, its state and its seconds.
        announce: told of runs that are left to others.

    Raises:
        KeyboardInterrupt: Ctrl-C; the children have ended by then, and go on where they stopped next time.
    """
    waiting, children = list(places), list[_Child]()
    environment = _environment(jobs)
    try:
        while waiting or children:
            while waiting and len(children) < jobs:
                with suppress(_TakenError):
                    children.append(_start(waiting.pop(0), environment, announce))
            time.sleep(_PAUSE)
            for child in [each for each in children if each.process.poll() is not None]:
                children.remove(child)
                seconds = time.monotonic() - child.begun
                state = child.place.end(child.process.returncode, seconds)
                child.lock.release(child.place.directory)
                told(child.place, state, seconds)
    except KeyboardInterrupt:
        for child in children:  # a terminal has interrupted them too; whoever sends a signal to this process has not
            with suppress(subprocess.TimeoutExpired):
                child.process.wait(_PATIENCE)
            child.process.send_signal(signal.SIGINT)  # nothing, if it has ended
        raise
    finally:
        for child in children:
            child.process.wait()
            child.lock.release(child.place.directory)


class _TakenError(Exception):
    """Another process is at this run."""


def _start(place: Place, environment: dict[str, str], announce: Callable[[str], None]) -> _Child:
    try:
        lock = DirectoryLock(place.directory)
    except OutputError:
        announce(f"{place.run.name}: another process is running it; left to that.")
        raise _TakenError from None
    words = [*PROGRAM, *place.words()]
    place.begin()
    with place.log.open("ab") as log:
        streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": subprocess.STDOUT}
        process = subprocess.Popen(words, env=environment, **streams)
    return _Child(place, process, lock, time.monotonic())


def _environment(jobs: int) -> dict[str, str]:
    """Return the environment of the children, with each one's share of the threads if there are several."""
    own = dict(os.environ) | {PARENT: str(os.getpid())}
    if jobs == 1:
        return own
    given = own.get("OMP_NUM_THREADS", "")
    threads = int(given) if given.isdigit() else cores()
    return own | {"OMP_NUM_THREADS": str(max(1, threads // jobs))}


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

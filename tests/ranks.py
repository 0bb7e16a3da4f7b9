"""Starts the processes of a distributed test."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests import forked
from torch.multiprocessing import ProcessExitedException, start_processes

PATIENCE = 150.0  # seconds


def start(size: int, home: Path, main: Callable[..., None]) -> bool:
    """Run the ranks, each ``main(rank, size, home)``; return False where they came to no end.

    The all-gather of gloo that DTensor uses now and then never returns, or aborts, while it takes down its
    buffers (seen in torch 2.13: ``UnboundBuffer::~UnboundBuffer``). What a rank itself raises is raised here.
    """
    home.mkdir()
    context = fork_ranks(main, (size, str(home)), size, join=False)
    ends = time.monotonic() + PATIENCE
    try:
        while time.monotonic() < ends:
            if context.join(timeout=1.0):
                return True
    except ProcessExitedException as error:
        if error.signal_name != "SIGABRT":
            raise
    finally:
        for process in context.processes:
            process.kill()
            process.join()
    return False


def finished(size: int, home: Path, main: Callable[..., None]) -> Path:
    """Run the ranks, up to four times until they come to an end; return the directory in which they did."""
    done = next((home / str(i) for i in range(4) if start(size, home / str(i), main)), None)
    assert done, "the ranks came to no end four times"
    return done


def fork_ranks(main: Callable[..., None], args: tuple[Any, ...], size: int, join: bool = True) -> Any:
    """Run ``main(rank, *args)`` in so many processes; they do not see this one's changes of the environment."""
    forked.server()
    return start_processes(main, args, nprocs=size, join=join, start_method="forkserver")  # type: ignore[no-untyped-call]

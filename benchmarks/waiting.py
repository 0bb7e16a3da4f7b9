"""How the threads of OpenMP wait for each other."""

from __future__ import annotations

import os
import sys


def sleep_while_waiting() -> None:
    """Start the program again with threads that sleep while they wait, unless the environment already says how.

    By default they spin, for all that runs in this process alike: on a machine that other work shares they take the
    cores from the very thread that they wait for. `lowdim`, the command, does the same.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        waits = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "1000"}
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | waits)

"""``python -m lowdim.pipeline.sweep.child ARGUMENTS``: this program, ended by the kernel when the sweep has ended."""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys

PARENT = "LOWDIM_SWEEP"
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG


def die_with_parent() -> None:
    """Have this process ended when the one that `PARENT` names dies, killed or not; on Linux alone."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGTERM)
    if os.getppid() != int(os.environ[PARENT]):  # it has died already
        sys.exit(1)


if __name__ == "__main__":
    die_with_parent()
    runpy.run_module("lowdim", run_name="__main__", alter_sys=True)

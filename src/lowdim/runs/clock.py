"""How long the stages of a run take, and how much memory."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Clock:
    """Seconds and peak memory of every stage."""

    stages: list[dict[str, Any]] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            seconds = round(time.perf_counter() - begun, 3)
            peak = round(peak_memory() / 2**20, 1)
            self.stages.append({"name": name, "seconds": seconds, "peak_mb": peak})


def peak_memory() -> int:
    """Return the most bytes this process has held in memory so far.

    Linux counts in ``ru_maxrss`` what the process that started this one held, so that its own file is read there.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024

"""How long the stages of a run take, and how much memory."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
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
    """Return the most bytes this process has held in memory so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024

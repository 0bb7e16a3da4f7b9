"""How fast this machine reads memory: the limit of every batch-1 decoder."""

from __future__ import annotations

import time

import torch

BUFFER = 256 * 2**20
_PASSES = 10


def read_bandwidth(buffer_bytes: int | None = None) -> float:
    """Return the bytes per second at which torch's threads read a buffer that no cache holds: the best of ten passes.

    Sums of fp32 vectors: the fastest reader of what torch offers, level with a plain loop of vector loads.

    Example:
        >>> read_bandwidth(2**20) > 0
        True
    """
    buffer = torch.ones((buffer_bytes or BUFFER) // 4)
    best = float("inf")
    for _ in range(_PASSES):
        begun = time.perf_counter()
        buffer.sum()
        best = min(best, time.perf_counter() - begun)
    return buffer.nbytes / best

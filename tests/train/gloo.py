"""A rank among others on one machine."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist


@contextmanager
def joined(rank: int, size: int, home: str) -> Iterator[None]:
    """Be one of so many ranks, which meet in a file; on one thread."""
    torch.set_num_threads(1)
    store = dist.FileStore(f"{home}/store", size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=datetime.timedelta(minutes=5))
    try:
        yield
        dist.barrier()  # a rank that leaves early takes its connections with it
    finally:
        dist.destroy_process_group()

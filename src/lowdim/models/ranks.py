"""Data parallel calibration: each rank carries its share of the batches, sums are added up, every rank prunes alike.

Launched by ``torchrun``, the ranks see the same weights and, after `add_up`, the same statistics, so they compute the
same masks and no mask is ever sent. Only rank 0 writes. In a single process every function here is a no-op.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")


def active() -> bool:
    """Whether several ranks work together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """This process's number; 0 alone writes."""
    return dist.get_rank() if active() else 0


def size() -> int:
    """Number of processes."""
    return dist.get_world_size() if active() else 1


def unwrapped(model: nn.Module) -> Any:
    """Return the network that copies of are trained, out of its DistributedDataParallel if it is in one."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def share(items: Sequence[T]) -> list[T]:
    """Return this rank's share: every ``size()``-th item. A batch goes to a rank whole, so its arithmetic is the same.

    Example:
        >>> share([1, 2, 3])
        [1, 2, 3]
    """
    return list(items[rank() :: size()])


def add_up(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its sum over the ranks, in place."""
    if active():
        for tensor in tensors:
            dist.all_reduce(tensor)


def broadcast(value: T) -> T:
    """Return rank 0's value on every rank."""
    if not active():
        return value
    box: list[Any] = [value]
    dist.broadcast_object_list(box)
    received: T = box[0]
    return received


def gathered(value: T) -> list[T]:
    """Return the values of all ranks, in their order."""
    if not active():
        return [value]
    values: list[Any] = [None] * size()
    dist.all_gather_object(values, value)
    return values


def agree(mapping: dict[str, str]) -> None:
    """Give every rank the entries of all, in one order (a rank may see no batch, an expert no token)."""
    if active():
        found = gathered(dict(mapping))
        mapping.clear()
        for other in found:
            for key, value in other.items():
                mapping.setdefault(key, value)


def barrier() -> None:
    """Wait for every rank."""
    if active():
        dist.barrier()


@contextmanager
def launched() -> Iterator[None]:
    """Join the group that ``torchrun`` describes in the environment; do nothing in a plain process."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or dist.is_initialized():
        yield
        return
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if backend == "nccl":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group(backend, timeout=datetime.timedelta(hours=2))
    try:
        yield
    finally:
        dist.destroy_process_group()

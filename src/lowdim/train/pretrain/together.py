"""What the processes of a run do together, and what is said where one of them is gone."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist

from lowdim.core.errors import LowdimError
from lowdim.models import ranks
from lowdim.train.pretrain.recipe import Pretraining

_GONE = re.compile(r"gloo|nccl|connection|peer|timed? ?out|socket", re.IGNORECASE)

T = TypeVar("T")


@contextmanager
def together(recipe: Pretraining) -> Iterator[None]:
    """Join the other processes; shards need a group even of one."""
    alone = recipe.parallel == "fsdp" and not dist.is_initialized()
    with ranks.launched():
        if alone := alone and not dist.is_initialized():
            dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
        try:
            yield
        finally:
            if alone:
                dist.destroy_process_group()


def first(work: Callable[[], T]) -> T | None:
    """Return what the first process makes, None on others; what it refuses is refused by all."""
    made: T | None = None
    wrong: LowdimError | None = None
    if ranks.rank() == 0:
        try:
            made = work()
        except LowdimError as error:
            wrong = error
    if (told := ranks.broadcast(wrong)) is not None:
        raise told
    return made


@contextmanager
def told_of_the_dead(out: Path, where: Callable[[], str]) -> Iterator[None]:
    """Raise a `LowdimError` that says so, and ``where`` this process is, where another of the run has ended."""
    try:
        yield
    except RuntimeError as error:
        if not ranks.active() or isinstance(error, torch.OutOfMemoryError) or not _GONE.search(str(error)):
            raise
        raise LowdimError(
            f"another process of this run has ended, {where()} ({str(error).splitlines()[0][:200]}). What was saved "
            f"stays in {out}.partial: resume from there."
        ) from error

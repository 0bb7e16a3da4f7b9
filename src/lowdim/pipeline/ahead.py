"""What measuring will take, said before it begins."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lowdim.data.batch import Batch
from lowdim.evaluate.quality import tasks, zeroshot
from lowdim.models.walk.opened import Opened


def asked_tokens(names: Sequence[str], tokenizer: Any, limit: int | None, seed: int) -> int:
    """Return the tokens of the tasks' questions; contexts that choices share count once for each."""
    count = 0
    for name in names:
        for question in zeroshot.sample(tasks.load(name), limit, seed, name):
            pairs = zip(question.contexts, question.continuations, strict=True)
            count += sum(len(tokenizer(before + after)["input_ids"]) for before, after in pairs)
    return count


def seconds_per_token(opened: Opened, ids: Tensor) -> float:
    """Return the seconds of a token in a forward of these, timed just now.

    Args:
        opened: the model.
        ids: one sequence, ``[1, tokens]``.
    """
    begun = time.perf_counter()
    with torch.no_grad():
        for _ in opened.stream.forward([Batch(ids)]):
            pass
    return (time.perf_counter() - begun) / ids.numel()


def minutes(seconds: float) -> str:
    """Write a duration as minutes; as hours where it is two of them or more.

    Example:
        >>> minutes(30), minutes(3000), minutes(9000)
        ('0.5 min', '50 min', '2.5 h')
    """
    if seconds >= 7200:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.1f} min" if seconds < 59.5 else f"{seconds / 60:.0f} min"

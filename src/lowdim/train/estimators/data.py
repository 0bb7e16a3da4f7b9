"""What estimators read: arrays and sparse matrices, cut into batches; seeds."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowdim.core.errors import NumericalError
from lowdim.core.random import generator

Rows = Any  # a numpy array [examples, features], or a scipy sparse one of rows


def seed_of(random_state: Any) -> int:
    """Return a seed for what scikit-learn calls a random state; None gives another one each time."""
    from sklearn.utils import check_random_state

    if random_state is None:
        return int(np.random.default_rng().integers(2**31))
    return int(check_random_state(random_state).randint(2**31 - 1))


def rows(x: Rows, chosen: Any) -> Tensor:
    """Return some examples, fp32 [chosen, features], dense."""
    found = x[chosen]
    dense = found.toarray() if hasattr(found, "toarray") else found
    return torch.from_numpy(np.require(dense, np.float32, ["C", "W"]))


def batches(x: Rows, y: Tensor, size: int, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Go through all examples once, in an order that depends on seed and epoch alone."""
    order = torch.randperm(len(y), generator=generator(seed, "order", epoch))
    for part in order.split(size):
        yield rows(x, part.numpy()), y[part]


def slices(x: Rows, size: int = 32) -> Iterator[Tensor]:
    """Go through all examples in their own order, ``size`` at a time; zeros fill up the last slice.

    All slices have one size and are computed alike, so that the result for an example does not depend on the others.
    """
    for start in range(0, x.shape[0], size):
        part = rows(x, slice(start, start + size))
        yield torch.cat([part, part.new_zeros(size - len(part), x.shape[1])])


def refuse_divergence(loss: float, epoch: int) -> None:
    """Refuse a mean loss that is no longer finite."""
    if not math.isfinite(loss):
        raise NumericalError(
            f"the loss of epoch {epoch} is {loss}: training diverged. Scale the features (StandardScaler), or lower "
            "learning_rate"
        )

"""What a reader of labelled data returns, before anything is cut, and what its numbers are standardised by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from lowdim.core.lazy import torch

_ROWS = 4096  # samples whose sums are taken at once


class Split(NamedTuple):
    """Examples and their classes: ``x`` [examples, ...], ``y`` int64 [examples]."""

    x: torch.Tensor
    y: torch.Tensor


class Texts(NamedTuple):
    """Texts and their classes: ``x`` one text each, ``y`` int64 [texts]."""

    x: Sequence[str]
    y: torch.Tensor


@dataclass(frozen=True)
class Raw:
    """What a reader returns: everything there is, not yet cut.

    Attributes:
        x: uint8 or float [examples, ...], or one text each.
        y: int64 [examples].
        classes: the classes' names.
        test: the examples set aside by the authors, if they did.
        held: how many of the last examples of ``x`` the authors set aside for choosing.
        names: of the user's own examples, each once.
    """

    x: torch.Tensor | Sequence[str]
    y: torch.Tensor
    classes: tuple[str, ...]
    test: Split | Texts | None = None
    held: int = 0
    names: tuple[str, ...] = ()


def moments(x: torch.Tensor, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and deviation that numbers are standardised by, fp32: one of an image's pixels, else one a column.

    Sums are taken in fp64 and in a fixed order, so that the same samples have the same bits, and the same hash, on any
    number of threads. torch divides sums among its threads, numpy does not.

    Args:
        x: [samples, ...].
        kind: "image" or "table".

    Example:
        >>> moments(torch.tensor([[0.0, 1.0], [2.0, 1.0]]), "table")
        (tensor([1., 1.]), tensor([1.4142e+00, 1.0000e-06]))
    """
    import numpy as np

    axis = None if kind == "image" else 0
    values = x.numpy()
    count = values.size if axis is None else len(values)
    parts = [values[at : at + _ROWS] for at in range(0, len(values), _ROWS)]
    with np.errstate(invalid="ignore", over="ignore"):  # who trains refuses what is not finite
        mean = sum(part.sum(axis, dtype=np.float64) for part in parts) / count
        squares = sum(np.square(part.astype(np.float64) - mean).sum(axis) for part in parts)
    deviation = np.sqrt(squares / max(1, count - 1))
    first, second = (torch.as_tensor(each, dtype=torch.float64).float() for each in (mean, deviation))
    return first, second.clamp_min(1e-6)

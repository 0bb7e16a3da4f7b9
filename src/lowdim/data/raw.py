"""What a reader of labelled data returns, before anything is cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from lowdim.core.lazy import torch


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
    """

    x: torch.Tensor | Sequence[str]
    y: torch.Tensor
    classes: tuple[str, ...]
    test: Split | Texts | None = None
    held: int = 0

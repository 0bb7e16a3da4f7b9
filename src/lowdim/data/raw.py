"""What a reader of labelled data returns, before anything is cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class Split(NamedTuple):
    """Examples and their classes: ``x`` [examples, ...], ``y`` int64 [examples]."""

    x: Tensor
    y: Tensor


@dataclass(frozen=True)
class Raw:
    """What a reader returns: everything there is, not yet cut.

    Attributes:
        x: uint8 or float [examples, ...], or one text each.
        y: int64 [examples].
        classes: the classes' names.
        test: the examples set aside by the authors, if they did.
    """

    x: Tensor | Sequence[str]
    y: Tensor
    classes: tuple[str, ...]
    test: Split | None = None

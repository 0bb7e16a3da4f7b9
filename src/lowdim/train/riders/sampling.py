"""What every way of choosing blocks answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from lowdim.core.settings import Settings, count

Measure = Callable[[float], list[float]]


@dataclass(frozen=True)
class Sampling(Settings, ABC):
    """Settings that say how likely each block is to be among those that train.

    Args:
        active: blocks that train at a time.
        every: optimizer steps between two choices.
        keep_state: keep the optimizer's state of blocks that are frozen, for when their turn comes again; without it a
            block begins each turn with no memory, and the state never exceeds that of ``active`` blocks.

    Attributes:
        measures: whether it looks at data.
    """

    measures: ClassVar[bool] = False

    active: int = count(2)
    every: int = count(3)
    keep_state: bool = False

    @abstractmethod
    def worths(self, blocks: int, measure: Measure | None) -> list[float]:
        """Return a number of at least 0 for every block, to which its probability is proportional.

        Args:
            blocks: how many there are.
            measure: m -> each block's share of outliers above m times the mean, on the data given; None without data.

        Raises:
            RecipeError: there is no data and should be, or there is and should not.
        """

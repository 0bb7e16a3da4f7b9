"""What every refinement answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lowdim.core.choices import Word

if TYPE_CHECKING:
    from torch import Tensor

    from lowdim.core.statistics import InputStatistics
    from lowdim.prune.bench import Work


@dataclass(frozen=True)
class Refine(Word, ABC):
    """Moves a finished mask; the weights' values stay.

    Attributes:
        needs: kinds of `lowdim.core.statistics.InputStatistics` that it reads.
        moves: whether it moves anything at all.
        group: comparison group of the masks that it starts from, where the recipe names none; ``None`` for the score's.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    moves: ClassVar[bool] = True
    group: ClassVar[str | None] = None

    def wants(self, layer: str) -> bool:
        """Whether it moves the mask of a layer."""
        return self.moves

    @abstractmethod
    def apply(self, work: Work, scores: Tensor, inputs: InputStatistics) -> Tensor:
        """Return the moved mask of one layer, bool ``[out, in]``, legal by the layer's pattern and of the same count.

        Args:
            work: the layer, its mask drawn.
            scores: the scores that drew it, ``[out, in]``.
            inputs: sums over the layer's input.
        """

"""No refinement: the mask stays as it was drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lowdim.prune.refine.base import Refine

if TYPE_CHECKING:
    from torch import Tensor

    from lowdim.core.statistics import InputStatistics
    from lowdim.prune.bench import Work


@dataclass(frozen=True)
class NoRefine(Refine):
    """Keep the mask that the score, the pattern and the allocation gave."""

    moves: ClassVar[bool] = False

    def apply(self, work: Work, scores: Tensor, inputs: InputStatistics) -> Tensor:
        """Return the mask as it is."""
        return work.kept

"""What every score answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from torch import Tensor

    from lowdim.core.statistics import InputStatistics


@dataclass(frozen=True)
class Score(ABC):
    """One number per weight: S_ij = |W_ij| * scale_j, with a scale per input column.

    Attributes:
        needs: the statistics the scale is made from; empty for a score of the weights alone.
    """

    needs: ClassVar[frozenset[str]] = frozenset()

    @property
    @abstractmethod
    def default_group(self) -> str:
        """The comparison group of the paper: "row", "matrix" or "column-block"."""

    @abstractmethod
    def column_scale(self, stats: InputStatistics | None) -> Tensor | None:
        """Return the scale, fp32 [in], or None where every column counts the same.

        Raises:
            ValueError: the score needs statistics and got none.
        """

    def score(self, weight: Tensor, scale: Tensor | None) -> Tensor:
        """Return the scores, at least fp32, [out, in], none negative.

        Args:
            weight: [out, in].
            scale: what ``column_scale`` returned, [in].
        """
        magnitude = weight.detach().float().abs()
        return magnitude if scale is None else magnitude.mul_(scale.to(magnitude.device))

    def _required(self, stats: InputStatistics | None) -> InputStatistics:
        if stats is None:
            raise ValueError(
                f"{type(self).__name__} needs statistics of the inputs ({', '.join(sorted(self.needs))})"
            )
        return stats

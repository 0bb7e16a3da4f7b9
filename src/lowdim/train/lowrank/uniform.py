"""The same share of the full rank everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowdim.train.lowrank.base import RankRule, check_keep

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class UniformRank(RankRule):
    """Every layer keeps round(keep * min(out, in)) directions, at least one.

    Example:
        >>> import torch
        >>> UniformRank().ranks({"a": torch.zeros(8, 6), "b": torch.zeros(4, 4)}, 0.5)
        {'a': 3, 'b': 2}
    """

    def ranks(self, weights: Mapping[str, Tensor], keep: float) -> dict[str, int]:
        """Return the ranks."""
        check_keep(keep)
        return {name: max(1, round(keep * min(weight.shape))) for name, weight in weights.items()}

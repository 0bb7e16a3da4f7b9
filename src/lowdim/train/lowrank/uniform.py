"""The same share of the full rank everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lowdim.train.lowrank.base import RankRule, check_keep

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class UniformRank(RankRule):
    """Every layer keeps round(keep * min(out, in)) directions, or the most that fit into a share of its weights.

    Args:
        of_what: what the share that is kept is of: all "directions", or all "weights": keep * out * in / (out + in)
            directions, rounded down. At least one in either case.

    Example:
        >>> import torch
        >>> UniformRank().ranks({"a": torch.zeros(8, 6), "b": torch.zeros(4, 4)}, 0.5)
        {'a': 3, 'b': 2}
        >>> UniformRank(of_what="weights").ranks({"a": torch.zeros(8, 6), "b": torch.zeros(4, 4)}, 0.5)
        {'a': 1, 'b': 1}
    """

    of_what: Literal["directions", "weights"] = "directions"

    def ranks(self, weights: Mapping[str, Tensor], keep: float) -> dict[str, int]:
        """Return the ranks."""
        check_keep(keep)
        return {name: max(1, self._rank(weight.shape[0], weight.shape[1], keep)) for name, weight in weights.items()}

    def _rank(self, out: int, width: int, keep: float) -> int:
        return (
            round(keep * min(out, width)) if self.of_what == "directions" else int(keep * out * width / (out + width))
        )

"""Ranks that change linearly with depth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowdim.core.settings import within
from lowdim.train.lowrank.base import RankRule, check_keep

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class LinearRank(RankRule):
    """A layer at depth l = 0..L-1 keeps the share c + keep * slope * (2 l / (L - 1) - 1) of its full rank.

    Shares are held between one direction and all. c is such that all layers together keep ``keep`` of their directions,
    but for rounding, by less than one direction a layer: it is ``keep`` itself where no share is held and all layers
    have the same full rank. The paper finds that a linear map beats a uniform one for Conformers
    trained from scratch, that attention may be cut to an eighth, and that feed-forward layers suffer at a half: call it
    for each group by itself. Its direction was not to be had: try both signs.

    Paper: "Full-Rank No More: Low-Rank Weight Training for Modern Speech Recognition Models", arXiv 2410.07771.

    Args:
        slope: between -1 and 1; above 0 deep layers keep more.

    Example:
        >>> import torch
        >>> LinearRank(slope=0.5).ranks({str(i): torch.zeros(8, 8) for i in range(3)}, 0.5)
        {'0': 2, '1': 4, '2': 6}
    """

    slope: float = within(0.5, least=-1, most=1)

    def ranks(self, weights: Mapping[str, Tensor], keep: float) -> dict[str, int]:
        """Return the ranks."""
        check_keep(keep)
        full = [min(weight.shape) for weight in weights.values()]
        tilts = [keep * self.slope * (2.0 * depth / max(1, len(full) - 1) - 1.0) for depth in range(len(full))]

        def kept(base: float) -> list[float]:
            return [most * min(1.0, max(0.0, base + tilt)) for most, tilt in zip(full, tilts, strict=True)]

        base, low, high = keep, -1.0, 2.0
        for _ in range(50):
            excess = sum(kept(base)) - keep * sum(full)
            if abs(excess) < 1e-6:
                break
            low, high = (low, base) if excess > 0 else (base, high)
            base = (low + high) / 2
        return {name: max(1, round(rank)) for name, rank in zip(weights, kept(base), strict=True)}

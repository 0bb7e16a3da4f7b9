"""Masks that stand while what they keep is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowdim.train.nm.base import MaskRule, Start

if TYPE_CHECKING:
    from lowdim.train.nm.riders import MaskRider


@dataclass(frozen=True)
class Fixed(MaskRule):
    """Keep every zero where it is, and train what is kept."""

    def ride(self, start: Start) -> MaskRider:
        """Hold the masks."""
        from lowdim.train.nm.riders import FixedMasks  # which needs torch, and a recipe is refused without it

        masks = {parameter: start.masks[name] for name, parameter in start.parameters.items()}
        return FixedMasks(masks, start.optimizer)

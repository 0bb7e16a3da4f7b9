"""Mix-LN: Post-LN in the first blocks, Pre-LN in the others."""

from __future__ import annotations

from dataclasses import dataclass
from math import floor

from lowdim.core.errors import LowdimError
from lowdim.core.settings import share
from lowdim.nn.placement.base import Placement
from lowdim.nn.residual.rule import POST, PRE, Rule


@dataclass(frozen=True)
class MixLN(Placement):
    """The first ``floor(alpha L)`` of L blocks are Post-LN, the others Pre-LN; the norm after the last block stays.

    Pre-LN lets gradients shrink with depth, so that the deep blocks learn little; Post-LN does the reverse. Together
    they keep them even. No parameters are added: of a block that comes with one norm before each branch, that norm
    takes the sum of stream and branch instead. There is no stock model that computes the same.

    Paper: "Mix-LN: Unleashing the Power of Deeper Layers by Combining Pre-LN and Post-LN", ICLR 2025, arXiv 2412.13795.

    Args:
        alpha: share of the blocks that are Post-LN. 0 is Pre-LN, 1 is Post-LN.

    Example:
        >>> MixLN(alpha=0.25).post(12), MixLN(alpha=0.125).post(12)
        (3, 1)
    """

    alpha: float = share(0.25, why="the share of the blocks that are Post-LN")

    def post(self, count: int) -> int:
        """Return how many of ``count`` blocks are Post-LN.

        Raises:
            LowdimError: alpha is above 0 and makes no whole block.
        """
        whole = floor(self.alpha * count + 1e-9)
        if self.alpha and not whole:
            raise LowdimError(
                f"alpha={self.alpha:g} of {count} blocks makes no whole block. Give at least {1 / count:.4g}, or 0 for "
                "Pre-LN"
            )
        return whole

    def rule(self, block: int, count: int, own: Rule) -> Rule:
        """Return Post-LN for the first blocks, Pre-LN for the others."""
        return POST if block <= self.post(count) else PRE

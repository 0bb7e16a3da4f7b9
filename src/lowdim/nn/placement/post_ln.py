"""Post-LN: a norm takes the sum of stream and branch."""

from __future__ import annotations

from dataclasses import dataclass

from lowdim.nn.placement.base import Placement
from lowdim.nn.residual.rule import POST, Rule


@dataclass(frozen=True)
class PostLN(Placement):
    """``u = N1(x + Attn(x))``, ``y = N2(u + MLP(u))``: the Transformer as it was first published.

    The norm that comes before a branch takes the sum instead; of a block with norms after its branches, those do, and
    the norms before them go. What leaves a block has the size of its last gain, so that gradients grow towards the end
    of the network: it wants a long warm-up.

    Paper: "Attention Is All You Need", NeurIPS 2017, arXiv 1706.03762.

    Example:
        >>> from lowdim.nn.residual.rule import PRE
        >>> PostLN().rule(1, 12, PRE).norms
        (False, False, True)
    """

    def rule(self, block: int, count: int, own: Rule) -> Rule:
        """Return the same rule for every block."""
        return POST

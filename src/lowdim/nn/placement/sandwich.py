"""Sandwich-LN: a norm before each branch and one after it."""

from __future__ import annotations

from dataclasses import dataclass

from lowdim.nn.placement.base import Placement
from lowdim.nn.residual.rule import SANDWICH, Rule


@dataclass(frozen=True)
class Sandwich(Placement):
    """``u = x + N2(Attn(N1(x)))``, ``y = u + N4(MLP(N3(u)))``: what Gemma 2 and 3 do as they are.

    There nothing changes. Other blocks get two norms more, of the kind that they have, with gain 1.

    Paper: "CogView: Mastering Text-to-Image Generation via Transformers", NeurIPS 2021, arXiv 2105.13290.

    Example:
        >>> from lowdim.nn.residual.rule import PRE
        >>> Sandwich().rule(1, 12, PRE).norms
        (True, True, False)
    """

    def rule(self, block: int, count: int, own: Rule) -> Rule:
        """Return the same rule for every block."""
        return SANDWICH

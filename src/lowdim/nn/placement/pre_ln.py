"""Pre-LN: each branch reads the stream through a norm."""

from __future__ import annotations

from dataclasses import dataclass

from lowdim.nn.placement.base import Placement
from lowdim.nn.residual.rule import PRE, Rule


@dataclass(frozen=True)
class PreLN(Placement):
    """``u = x + Attn(N1(x))``, ``y = u + MLP(N2(u))``: what Llama, Qwen, Mistral and GPT-2 do as they are.

    There nothing changes, and the model stays a stock one. A block with norms after its branches too loses those.

    Paper: "On Layer Normalization in the Transformer Architecture", ICML 2020, arXiv 2002.04745.

    Example:
        >>> from lowdim.nn.residual.rule import PRE
        >>> PreLN().rule(1, 12, PRE).norms
        (True, False, False)
    """

    def rule(self, block: int, count: int, own: Rule) -> Rule:
        """Return the same rule for every block."""
        return PRE

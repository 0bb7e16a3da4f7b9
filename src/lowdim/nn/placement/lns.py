"""LayerNorm Scaling: what a branch reads shrinks with the square root of its depth."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import sqrt

from lowdim.core.errors import LowdimError
from lowdim.nn.placement.base import Placement
from lowdim.nn.residual.rule import PRE, Rule


@dataclass(frozen=True)
class LayerNormScaling(Placement):
    """``u = x + Attn(N1(x) / sqrt(l))``, ``y = u + MLP(N2(u) / sqrt(l))`` in block l = 1 .. L.

    In Pre-LN the variance of the stream can grow exponentially with depth, and the deep blocks become near to the
    identity; the factor makes the growth polynomial. It is fixed, comes after the gain of the norm, and both norms of a
    block have the same. Norms of queries and keys and the norm after the last block have none. No parameters are
    added, and `fold_` moves the factor into the gains.

    Paper: "The Curse of Depth in Large Language Models", NeurIPS 2025, arXiv 2502.05795.

    Example:
        >>> from lowdim.nn.residual.rule import PRE
        >>> [LayerNormScaling().rule(block, 4, PRE).scale for block in (1, 4)]
        [1.0, 0.5]
    """

    def rule(self, block: int, count: int, own: Rule) -> Rule:
        """Return Pre-LN with the factor 1 / sqrt(l)."""
        need_pre_ln(own)
        return replace(PRE, scale=1 / sqrt(block))


def need_pre_ln(rule: Rule) -> None:
    """Refuse blocks for which LayerNorm Scaling is not defined.

    Raises:
        LowdimError: other norms than those before the branches are there, or none.
    """
    if rule.norms != PRE.norms:
        raise LowdimError(
            "LayerNorm Scaling is defined for blocks with a norm before each branch and no other: one after the branch "
            "or the sum would undo the factor. Use a model of the Llama kind"
        )

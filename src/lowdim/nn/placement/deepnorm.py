"""DeepNorm: Post-LN with a stream that weighs more than the branches, and smaller weights to begin with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lowdim.nn.placement.base import Placement
from lowdim.nn.residual.rule import POST, Rule

if TYPE_CHECKING:
    from lowdim.nn.residual.sites import Site


@dataclass(frozen=True)
class DeepNorm(Placement):
    """``u = N1(a x + Attn(x))``, ``y = N2(a u + MLP(u))`` with ``a = (2 L)^(1/4)`` in a decoder of L blocks.

    An untrained network begins with weights of the standard deviation of Xavier's, ``gain * sqrt(2 / (in + out))``:
    gain 1 for queries and keys, ``b = (8 L)^(-1/4)`` for values, the output of attention, and the MLP. The numbers that
    the model came with are scaled to it, so that its seed still decides. Which rows are values is told by a run over
    one token, which attends to itself alone: queries and keys do not matter there. A network that has been trained
    keeps its weights.

    The code that was published with Mix-LN has other constants (a = 2.83 whatever L, and b = (8 L)^(+1/4)).

    Paper: "DeepNet: Scaling Transformers to 1,000 Layers", arXiv 2203.00555.

    Example:
        >>> from lowdim.nn.residual.rule import PRE
        >>> DeepNorm().rule(1, 8, PRE).skip
        2.0
    """

    def rule(self, block: int, count: int, own: Rule) -> Rule:
        """Return Post-LN with the weighed stream."""
        return replace(POST, skip=(2 * count) ** 0.25)

    def start(self, model: Any, sites: Sequence[Site]) -> list[Callable[[], None]]:
        """Return what draws the weights."""
        from lowdim.nn.residual.weights import xavier  # torch

        return xavier(model, sites, (8 * len(sites)) ** -0.25)

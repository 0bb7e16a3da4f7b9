"""GPAS: a stream that is scaled down without its gradient."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from lowdim.core.errors import RecipeError
from lowdim.nn.placement.over import Over
from lowdim.nn.residual.rule import Rule


@dataclass(frozen=True)
class GPAS(Over):
    """``x`` becomes ``x - silu(g) sg(x)`` with a learned gate g, 0 at first; sg stops gradients.

    The stream of a deep network grows, and its last blocks add little to it. The gate scales it on the way forward,
    by ``1 - silu(g)``, and leaves the gradient as it is: ``dL/dx = dL/dy``, ``dL/dg = -silu'(g) <x, dL/dy>``. It takes
    the stream after each sum, or, where a norm takes the sum (Post-LN, DeepNorm, the first blocks of Mix-LN), the
    stream that enters it. At g = 0 the network computes what it did without.

    Gates are parameters ``BLOCK.gpas.gate`` of one dimension and stay fp32. Leave them out of weight decay, and clip
    their gradients, which are sums over all tokens and channels, apart from the others if training is not stable (the
    paper's code: norm 0.01). Above g = 1.278 the stream would change its sign.

    Over the norms as they came, and over LayerNorm Scaling, `fold_` divides what each branch adds by the product of the
    gates before it: norms do not see the scale of the stream, up to their eps.

    Paper: "GPAS: Accelerating Convergence of LLM Pretraining via Gradient-Preserving Activation Scaling", NeurIPS 2025,
    arXiv 2506.22049.

    Args:
        gates: one per "block", shared by its two branches, as in the code of the paper, or one per "branch".

    Example:
        >>> from lowdim.nn.residual.rule import PRE
        >>> GPAS(over="mix-ln").rule(1, 12, PRE).closes, GPAS(over="mix-ln").rule(4, 12, PRE).closes
        (True, False)
    """

    gates: Literal["block", "branch"] = "block"

    def changed(self, rule: Rule, block: int, count: int) -> Rule:
        """Return the rule with gates."""
        if rule.gates:
            raise RecipeError("over has gates already: GPAS over GPAS would scale the stream twice. Name what is below")
        return replace(rule, gates=1 if self.gates == "block" else 2)

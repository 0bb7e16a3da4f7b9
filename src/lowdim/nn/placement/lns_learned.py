"""LayerNorm Scaling with a factor that training may take back: gains that begin smaller in deep blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lowdim.core.errors import RecipeError
from lowdim.nn.placement.lns import need_pre_ln
from lowdim.nn.placement.start import Start
from lowdim.nn.residual.rule import Rule

if TYPE_CHECKING:
    from lowdim.nn.residual.sites import Site


@dataclass(frozen=True)
class LearnedLayerNormScaling(Start):
    """The gains of both norms of block l begin at ``1 / sqrt(l)``, and are trained like any.

    This is what the code of GPAS and of ProRes calls LNS. It computes what LayerNorm Scaling does before the first
    step; then the gains may take the factor back, and weight decay acts on other numbers.

    Paper: "The Curse of Depth in Large Language Models", arXiv 2502.05795, in the reading of arXiv 2506.22049.
    """

    def changed(self, rule: Rule, block: int, count: int) -> Rule:
        """Return the rule as it is, if LayerNorm Scaling is defined for it."""
        need_pre_ln(rule)
        if rule.scale != 1.0:
            raise RecipeError("over scales what enters the branches already; gains that do so too would scale it twice")
        return rule

    def start(self, model: Any, sites: Sequence[Site]) -> list[Callable[[], None]]:
        """Return what sets the gains."""
        from lowdim.nn.residual.weights import scaled_gains  # torch

        return [*super().start(model, sites), *scaled_gains(sites)]

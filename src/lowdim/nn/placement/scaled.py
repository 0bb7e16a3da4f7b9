"""Initial weights that grow smaller with depth, the rivals of placements: norms stay where they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lowdim.core.errors import LowdimError
from lowdim.nn.placement.lns import need_pre_ln
from lowdim.nn.placement.over import Over
from lowdim.nn.residual.rule import Rule

if TYPE_CHECKING:
    from lowdim.nn.residual.sites import Site


@dataclass(frozen=True)
class Start(Over):
    """Sets the weights that an untrained network begins with, and changes nothing else: the model stays a stock one."""

    def check_start(self, trained: bool) -> None:
        """Refuse a network that has been trained."""
        super().check_start(trained)
        if trained:
            raise LowdimError(
                f"{type(self).__name__} sets the weights that training begins with, and the gains of the norms do not "
                "show that this network is untrained. Build it anew from its config"
            )


@dataclass(frozen=True)
class ScaledInit(Start):
    """The last matrix of each branch begins with the standard deviation ``s / sqrt(2 L)``, s being that of the config.

    2 L is the number of branches that add to the stream. The numbers that the model came with are scaled, so that its
    seed still decides. GPT-2 does this as it is. The authors of LayerNorm Scaling advise against both together.

    Paper: "Language Models are Unsupervised Multitask Learners", 2019; as in "Megatron-LM: Training Multi-Billion
    Parameter Language Models Using Model Parallelism", arXiv 1909.08053.

    Args:
        over: where the norms stand: a name, a mapping with a name and settings, or the object; None for as they are.
    """

    def start(self, model: Any, sites: Sequence[Site]) -> list[Callable[[], None]]:
        """Return what scales the weights."""
        from lowdim.nn.residual.weights import scaled_outputs  # torch

        return [*super().start(model, sites), *scaled_outputs(model, sites)]


@dataclass(frozen=True)
class DepthScaledInit(Start):
    """Every matrix of block l is divided by ``sqrt(l)`` before training.

    Paper: "Improving Deep Transformer with Depth-Scaled Initialization and Merged Attention", EMNLP 2019,
    arXiv 1908.11365, with its alpha of 1.

    Args:
        over: where the norms stand: a name, a mapping with a name and settings, or the object; None for as they are.
    """

    def start(self, model: Any, sites: Sequence[Site]) -> list[Callable[[], None]]:
        """Return what scales the weights."""
        from lowdim.nn.residual.weights import scaled_by_depth  # torch

        return [*super().start(model, sites), *scaled_by_depth(sites)]


@dataclass(frozen=True)
class LearnedLayerNormScaling(Start):
    """The gains of both norms of block l begin at ``1 / sqrt(l)``, and are trained like any.

    This is what the code of GPAS and of ProRes calls LNS. It computes what LayerNorm Scaling does before the first
    step; then the gains may take the factor back, and weight decay acts on other numbers.

    Paper: "The Curse of Depth in Large Language Models", arXiv 2502.05795, in the reading of arXiv 2506.22049.

    Args:
        over: where the norms stand: a name, a mapping with a name and settings, or the object; None for as they are.
    """

    def changed(self, rule: Rule, block: int, count: int) -> Rule:
        """Return the rule as it is, if LayerNorm Scaling is defined for it."""
        need_pre_ln(rule)
        return rule

    def start(self, model: Any, sites: Sequence[Site]) -> list[Callable[[], None]]:
        """Return what sets the gains."""
        from lowdim.nn.residual.weights import scaled_gains  # torch

        return [*super().start(model, sites), *scaled_gains(sites)]

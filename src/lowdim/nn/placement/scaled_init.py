"""Scaled initialisation: the last matrix of each branch begins smaller, by the number of branches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lowdim.nn.placement.start import Start

if TYPE_CHECKING:
    from lowdim.nn.residual.sites import Site


@dataclass(frozen=True)
class ScaledInit(Start):
    """The last matrix of each branch begins with the standard deviation ``s / sqrt(2 L)``, s being that of the config.

    2 L is the number of branches that add to the stream. The numbers that the model came with are scaled, so that its
    seed still decides. GPT-2 does this as it is. The authors of LayerNorm Scaling advise against both together.

    Paper: "Language Models are Unsupervised Multitask Learners", 2019; as in "Megatron-LM: Training Multi-Billion
    Parameter Language Models Using Model Parallelism", arXiv 1909.08053.
    """

    def start(self, model: Any, sites: Sequence[Site]) -> list[Callable[[], None]]:
        """Return what scales the weights."""
        from lowdim.nn.residual.weights import scaled_outputs  # torch

        return [*super().start(model, sites), *scaled_outputs(model, sites)]

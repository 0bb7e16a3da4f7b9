"""Depth-scaled initialisation: the matrices of deep blocks begin smaller."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lowdim.nn.placement.start import Start

if TYPE_CHECKING:
    from lowdim.nn.residual.sites import Site


@dataclass(frozen=True)
class DepthScaledInit(Start):
    """Every matrix of block l is divided by ``sqrt(l)`` before training.

    Paper: "Improving Deep Transformer with Depth-Scaled Initialization and Merged Attention", EMNLP 2019,
    arXiv 1908.11365, with its alpha of 1.
    """

    def start(self, model: Any, sites: Sequence[Site]) -> list[Callable[[], None]]:
        """Return what scales the weights."""
        from lowdim.nn.residual.weights import scaled_by_depth  # torch

        return [*super().start(model, sites), *scaled_by_depth(sites)]

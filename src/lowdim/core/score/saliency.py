"""Saliency: how much the loss reacts to a weight's presence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowdim.core.score.base import GradientScore

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Saliency(GradientScore):
    """S_ij = |G_ij * W_ij|, G being the gradient of the loss: its slope if the weight is scaled down to zero.

    G is summed over all tokens before the absolute value is taken.

    Paper: "SNIP: Single-shot Network Pruning based on Connection Sensitivity", arXiv 1810.02340.

    Example:
        >>> import torch
        >>> Saliency().worth(torch.tensor([[1.0, -2.0]]), torch.tensor([[3.0, 0.5]]))
        tensor([[3., 1.]])
    """

    def worth(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """Return |G * W|."""
        return (gradient * weight).abs()

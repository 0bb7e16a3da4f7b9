"""Taylor: the squared change of the loss, to first order, if a weight is removed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowdim.core.score.base import GradientScore

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Taylor(GradientScore):
    """S_ij = (G_ij * W_ij)^2, G being the gradient of the loss.

    Weights one by one rank as by `Saliency`; the sums over blocks, heads and channels give large ones more say. The
    paper squares batch by batch, here the gradient of all tokens together is squared.

    Paper: "Importance Estimation for Neural Network Pruning", arXiv 1906.10771.

    Example:
        >>> import torch
        >>> Taylor().worth(torch.tensor([[1.0, -2.0]]), torch.tensor([[3.0, 0.5]]))
        tensor([[9., 1.]], dtype=torch.float64)
    """

    def worth(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """Return (G * W)^2 in fp64, in which small gradients do not vanish when they are squared."""
        return (gradient.double() * weight).square()

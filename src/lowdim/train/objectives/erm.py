"""Empirical risk minimisation: the mean cross entropy, every sample alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lowdim.core.lazy import torch
from lowdim.train.objectives.base import Drawn, Objective

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ERM(Objective):
    """Cross entropy, l_i = -log softmax(f(x_i))[y_i], of every sample alike.

    Example:
        >>> import torch
        >>> batch = Drawn(torch.zeros(1, 2), torch.tensor([0]), torch.tensor([0]), None, {})
        >>> round(float(ERM().loss(torch.tensor([[2.0, 0.0]]), batch)), 4)
        0.1269
    """

    def loss(self, outputs: Any, batch: Drawn) -> Tensor:
        """Return the cross entropy of every sample, in nats."""
        return torch.nn.functional.cross_entropy(outputs, batch.y, reduction="none")

    def mean(self, outputs: Any, batch: Drawn) -> Tensor:
        """Return the mean cross entropy of a batch."""
        return torch.nn.functional.cross_entropy(outputs, batch.y)

"""DPO: the likelihood of preferences, with the model as its own reward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowdim.core.lazy import torch
from lowdim.core.settings import within
from lowdim.train.preference.base import Strict

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class DPO(Strict):
    """-(1 - s) log sigma(beta h) - s log sigma(-beta h), h the log-ratio of a pair (see `Preference`).

    It is the negative log-likelihood of the Bradley-Terry model, P(chosen over rejected) = sigma(beta h).

    Paper: "Direct Preference Optimization: Your Language Model is Secretly a Reward Model", 2023, arXiv 2305.18290; s
    is the chance that a label is wrong ("conservative DPO").

    Args:
        smoothing: s.

    Example:
        >>> import torch
        >>> DPO(beta=1.0).losses(torch.tensor([0.0, 1.0]), torch.tensor([False, False]))
        tensor([0.6931, 0.3133])
    """

    smoothing: float = within(0.0, least=0, below=0.5)

    def losses(self, ratio: Tensor, tie: Tensor) -> Tensor:
        """Return the loss of every pair."""
        reward = self.beta * ratio
        softplus = torch.nn.functional.softplus
        right: Tensor = softplus(-reward)
        return right if not self.smoothing else (1 - self.smoothing) * right + self.smoothing * softplus(reward)

"""Adam, with decay coupled to the gradient or decoupled from it."""

from __future__ import annotations

from dataclasses import dataclass

from lowdim.core.lazy import torch
from lowdim.core.settings import within
from lowdim.train.optimizers.base import OptimizerRule, groups, trainable


@dataclass(frozen=True)
class AdamW(OptimizerRule):
    """Adam with decoupled decay: W <- W - lr (M / (sqrt(V) + eps) + d W), M and V the corrected means of G and G^2.

    Paper: "Decoupled Weight Decay Regularization", arXiv 1711.05101; `torch.optim.AdamW`.

    Args:
        lr: learning rate at its peak; a schedule scales it.
        weight_decay: d; pulls every trained weight to zero, norms and embeddings too, but not the gates of a placement.
        beta1: how long M remembers.
        beta2: how long V does.
        eps: added to the root of V.

    Example:
        >>> import torch
        >>> layer = torch.nn.Linear(2, 1, bias=False)
        >>> before, optimizer = layer.weight.detach().clone(), AdamW(lr=0.1).build(layer)
        >>> layer(torch.ones(1, 2)).sum().backward()
        >>> optimizer.step()
        >>> torch.allclose(before - layer.weight.detach(), torch.tensor(0.1))
        True
    """

    def build(self, model: torch.nn.Module) -> torch.optim.Optimizer:
        """Return the optimizer of a model's trainable parameters."""
        return torch.optim.AdamW(groups(model, trainable(model)), **self._adam(self.lr, self.weight_decay))


@dataclass(frozen=True)
class Adam(OptimizerRule):
    """Adam with coupled decay: d W is added to the gradient G before the means; without decay it is AdamW.

    Paper: "Adam: A Method for Stochastic Optimization", arXiv 1412.6980; `torch.optim.Adam`.

    Args:
        lr: learning rate at its peak; a schedule scales it.
        weight_decay: d; added to the gradient of every trained weight, d times the weight.
        beta1: how long the mean of G remembers.
        beta2: how long the mean of G^2 does; 0.999 in the papers that train without decay.
        eps: added to the root of that mean.

    Example:
        >>> import torch
        >>> Adam(weight_decay=0.1).build(torch.nn.Linear(2, 1)).defaults["betas"]
        (0.9, 0.999)
    """

    beta2: float = within(0.999, least=0, below=1)

    def build(self, model: torch.nn.Module) -> torch.optim.Optimizer:
        """Return the optimizer of a model's trainable parameters."""
        return torch.optim.Adam(groups(model, trainable(model)), **self._adam(self.lr, self.weight_decay))

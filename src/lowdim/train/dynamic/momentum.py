"""A dense momentum: what the gradients of all weights, active or not, come to over the steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lowdim.train.ride import Observer, Ride
from lowdim.train.sparse.distributed import full
from lowdim.train.sparse.layer import SparseLayer
from lowdim.train.sparse.parts import whole_of


class DenseMomentum(Observer):
    """m = beta m + g of every weight; for an optimizer of the Adam family |m| / (sqrt(v) + 1e-8) counts.

    The optimizer's own memory is of active weights alone, so this is held beside it: as large as the weight, twice for
    Adam. Gradients with NaN or Inf are left out.

    Args:
        layer: whose gradient is dense at every step.
        optimizer: whose momentum (0.9 if it has none) and betas are taken.
    """

    def __init__(self, layer: SparseLayer, optimizer: Optimizer) -> None:
        self._parameter, self._units = layer.parameter, layer.units
        mine = next(g for g in optimizer.param_groups if any(p is whole_of(layer.parameter) for p in g["params"]))
        self._betas: tuple[float, ...] = mine["betas"] if "betas" in mine else (mine.get("momentum") or 0.9,)
        count = 2 if len(self._betas) > 1 else 1
        self._held = [torch.zeros_like(layer.parameter, requires_grad=False) for _ in range(count)]
        self._ride = Ride.board(optimizer, self)

    @torch.no_grad()
    def gradients(self, step: int) -> bool:
        """Take in the gradient of a step."""
        if self._parameter.grad is not None:
            gradient = torch.nan_to_num(self._parameter.grad, 0.0, 0.0, 0.0)
            for held, beta, value in zip(self._held, self._betas, (gradient, gradient * gradient), strict=False):
                held.mul_(beta).add_(value, alpha=1.0 - beta if len(self._betas) > 1 else 1.0)
        return False

    def stepped(self, step: int) -> None:
        """Nothing to do."""

    def sizes(self) -> Tensor:
        """Return what weights are ranked by, fp32 [size]."""
        held = [self._units.values(full(part)).float() for part in self._held]
        return held[0].abs() if len(held) == 1 else held[0].abs() / (held[1].sqrt() + 1e-8)

    def state_dict(self) -> dict[str, Any]:
        """Return what is held."""
        return {"held": [part.clone() for part in self._held]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take what a ``state_dict`` held."""
        for part, held in zip(self._held, state["held"], strict=True):
            part.copy_(held)

    def remove(self) -> None:
        """Get off."""
        self._ride.leave(self)

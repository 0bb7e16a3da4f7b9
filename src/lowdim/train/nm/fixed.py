"""Masks that stand while what they keep is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from lowdim.train.nm.base import MaskRider, MaskRule, Start
from lowdim.train.ride import Ride


@dataclass(frozen=True)
class Fixed(MaskRule):
    """Keep every zero where it is, and train what is kept."""

    def ride(self, start: Start) -> MaskRider:
        """Hold the masks."""
        masks = {parameter: start.masks[name] for name, parameter in start.parameters.items()}
        return FixedMasks(masks, start.optimizer)


class FixedMasks(MaskRider):
    """Takes the gradient from what is pruned, so that clipping does not see it and no optimizer moves it off zero.

    Weights that are zero to begin with stay exact zeros under every optimizer whose step is zero for a gradient that
    always was; decay of weights does no harm. For a loop that is not ours there is `lowdim.train.SparseTraining`, which
    trusts no optimizer.

    Args:
        masks: kept entries, bool of the weight's shape, on its device.
        optimizer: that trains the weights.

    Example:
        >>> import torch
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> with torch.no_grad():
        ...     _ = layer.weight.copy_(torch.tensor([[1.0, 0.0]]))
        >>> optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
        >>> masks = FixedMasks({layer.weight: layer.weight != 0}, optimizer)
        >>> layer(torch.ones(1, 2)).sum().backward()
        >>> optimizer.step()
        >>> layer.weight[0, 0] < 1, layer.weight[0, 1] == 0
        (tensor(True), tensor(True))
    """

    def __init__(self, masks: Mapping[nn.Parameter, Tensor], optimizer: Optimizer) -> None:
        self._masks = dict(masks)
        self._ride = Ride.board(optimizer, self)
        self._handles = [p.register_post_accumulate_grad_hook(self._clear) for p in self._masks]

    def projections(self) -> dict[nn.Parameter, Any]:
        """Return nothing: weights are zero where they are pruned."""
        return {}

    def _clear(self, parameter: nn.Parameter) -> None:
        if parameter.grad is not None:
            parameter.grad.mul_(self._masks[parameter])

    def gradients(self, step: int) -> bool:
        """Zero the gradient of what is pruned once more: ranks may have averaged it since it arrived."""
        for parameter in self._masks:
            self._clear(parameter)
        return False

    def stepped(self, step: int) -> None:
        """Leave the weights: what was zero still is."""

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: the masks are given."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on."""

    def remove(self) -> None:
        """Get off."""
        for handle in self._handles:
            handle.remove()
        self._ride.leave(self)

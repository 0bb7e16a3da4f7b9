"""What holds the masks of a model in training; masks that stand."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from lowdim.core.masks import zero_
from lowdim.models import ranks
from lowdim.train.ride import Ride, Rider
from lowdim.train.sparse.distributed import local, part


class MaskRider(Rider):
    """Holds the masks of a model in training.

    Attributes:
        history: what every choice of masks did, as plain values; nothing where masks stand.
    """

    history: Sequence[Mapping[str, Any]] = ()

    @abstractmethod
    def weights(self) -> list[tuple[str, Tensor]]:
        """Return those that have a mask."""

    @abstractmethod
    def projections(self) -> dict[nn.Parameter, Callable[[Tensor], Tensor]]:
        """Return what the model computes with, by weight, for `lowdim.train.loop.Loop`."""


class FixedMasks(MaskRider):
    """Takes the gradient from what is pruned, so that clipping does not see it and no optimizer moves it off zero.

    Weights that are zero to begin with stay exact zeros under every optimizer whose step is zero for a gradient that
    always was; decay of weights does no harm. For a loop that is not ours there is `lowdim.train.SparseTraining`, which
    trusts no optimizer.

    Args:
        masks: kept entries, bool of the weight's shape, on its device; whole, also where weights are sharded.
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
        self._off = {parameter: part(~mask, parameter) for parameter, mask in masks.items()}
        self._ride = Ride.board(optimizer, self)
        self._handles = [p.register_post_accumulate_grad_hook(self._clear) for p in self._off]

    def weights(self) -> list[tuple[str, Tensor]]:
        """Return those that have a mask."""
        return [("", parameter) for parameter in self._off]

    def projections(self) -> dict[nn.Parameter, Any]:
        """Return nothing: weights are zero where they are pruned."""
        return {}

    def _clear(self, parameter: nn.Parameter) -> None:
        if parameter.grad is not None:
            zero_(local(parameter.grad), self._off[parameter])

    def gradients(self, step: int) -> bool:
        """Zero the gradient of what is pruned once more: ranks may have averaged it since it arrived."""
        for parameter in self._off if ranks.active() else ():
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

"""Progressive residual warm-up in any loop: the shares of the branches follow the steps of the optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from lowdim.nn.placement.prores import set_step, step_of
from lowdim.train.ride import Ride, Rider


class ResidualWarmup(Rider):
    """Sets how much each branch of a model with `lowdim.nn.placement.ProRes` counts, after every step.

    It begins at the step that the shares in the model are at: 0 in a model just placed, and where the training before
    it left them in a checkpoint. A ramp that has ended stays so. Micro-batches of one step see one share.

    Args:
        model: with ProRes, wrapped or not.
        optimizer: that trains it.
        total_steps: is not needed, and taken as callbacks give it.

    Raises:
        LowdimError: the model has no ProRes.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, *, total_steps: int | None = None) -> None:
        self._model, self.step = model, step_of(model)
        self._ended = set_step(model, self.step)
        self._ride = Ride.board(optimizer, self)

    def gradients(self, step: int) -> bool:
        """Leave the gradients."""
        return False

    def stepped(self, step: int) -> None:
        """Set the shares of the next step."""
        self._ended = self._ended or set_step(self._model, step)

    def state_dict(self) -> dict[str, Any]:
        """Return the steps done."""
        return {"step": self.step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from so many steps."""
        self.step = int(state["step"])
        self._ended = set_step(self._model, self.step)

    def follow(self, earlier: ResidualWarmup) -> None:
        """Go on from the shares that an earlier run has left."""
        self.load_state_dict(earlier.state_dict())

    def remove(self) -> None:
        """Get off; the shares stay as they are."""
        self._ride.leave(self)

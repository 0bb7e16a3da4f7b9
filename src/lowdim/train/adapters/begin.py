"""How a rider begins in somebody else's loop: afresh, from a checkpoint, or where the training before it ended."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar
from weakref import ref

from torch import nn

from lowdim.train.ride import Rider

R = TypeVar("R", bound=Rider)


class Beginning(Generic[R]):
    """Makes the riders of a callback, one for each training, and remembers of which model the last one was.

    Args:
        rider: (model, optimizer, **settings) -> the rider.
        settings: of the rider.
    """

    def __init__(self, rider: Callable[..., R], settings: Mapping[str, Any]) -> None:
        self._rider, self._settings = rider, settings
        self._model: ref[nn.Module] | None = None

    def rode(self, model: nn.Module) -> bool:
        """Tell whether the last rider was one of this very model."""
        return self._model is not None and self._model() is model

    def make(self, model: nn.Module, optimizer: Any, steps: int | None, saved: Any, earlier: R | None) -> R:
        """Return a rider that is on board.

        Args:
            model: in training.
            optimizer: that trains it.
            steps: of the whole training, where the settings do not say; None where nobody knows.
            saved: its state in the checkpoint from which the model was read; None if there is none.
            earlier: the rider of the training before.

        Raises:
            LowdimError: what it shall go on from is not of this model's weights; nothing has been changed then.
        """
        made: R = self._rider(model, optimizer, **({"total_steps": steps} | dict(self._settings)))
        if saved is not None:
            made.resume(saved)
        elif earlier is not None and self.rode(model):
            made.follow(earlier)
        self._model = ref(model)
        return made

"""Sparse training, and any other rider, in Lightning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from lightning.pytorch import Callback, LightningModule, Trainer

from lowdim.core.errors import RecipeError
from lowdim.train.ride import Rider
from lowdim.train.sparse.training import SparseTraining

R = TypeVar("R", bound=Rider)


class RiderCallback(Callback, Generic[R]):
    """Lets a `Rider` act around the optimizer steps of `lightning.pytorch.Trainer`: add it to ``callbacks``.

    The rider is made when training starts. Its state travels in Lightning's checkpoints.

    Args:
        rider: (model, optimizer, total_steps=..., **settings) -> the rider, on board of that optimizer.
        name: of its state in checkpoints; another one for each rider of a Trainer.
        settings: what else the rider takes.

    Attributes:
        training: the rider, from the start of training on.
    """

    def __init__(self, rider: Callable[..., R], name: str, **settings: Any) -> None:
        self.training: R | None = None
        self._rider, self._name, self._settings = rider, name, settings
        self._state: dict[str, Any] | None = None

    @property
    def state_key(self) -> str:
        """The name of the state in checkpoints."""
        return self._name

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the rider, and let it take its state in the checkpoint.

        Raises:
            RecipeError: the module has several optimizers.
        """
        if len(trainer.optimizers) != 1:
            raise RecipeError(
                f"{type(self).__name__} works with one optimizer; the module has {len(trainer.optimizers)}. Make a "
                "rider for each in configure_optimizers"
            )
        if self.training is not None:  # of a run that broke off
            self.training.remove()
        settings = {"total_steps": int(trainer.estimated_stepping_batches)} | self._settings
        self.training = self._rider(pl_module, trainer.optimizers[0], **settings)
        if self._state is not None:
            self.training.load_state_dict(self._state)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the rider off; sparse weights keep their zeros."""
        if self.training is not None:
            self.training.remove()

    def state_dict(self) -> dict[str, Any]:
        """Return the state that goes into Lightning's checkpoints."""
        return {} if self.training is None else self.training.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state of a checkpoint until training starts."""
        self._state = state_dict or None


class SparseTrainingCallback(RiderCallback[SparseTraining]):
    """Trains sparsely in `lightning.pytorch.Trainer`: add it to ``callbacks``.

    `SparseTraining` is made when training starts, over the module's optimizer, with ``estimated_stepping_batches`` as
    ``total_steps``. Its state travels in Lightning's checkpoints.

    Args:
        settings: what `SparseTraining` takes besides model and optimizer: ``sparsity``, ``method`` and so on.

    Attributes:
        training: the `SparseTraining`, from the start of training on.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(SparseTraining, type(self).__qualname__, **settings)

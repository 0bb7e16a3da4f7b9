"""Sparse training in Lightning."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lowdim.core.errors import RecipeError
from lowdim.train.sparse.training import SparseTraining


class SparseTrainingCallback(Callback):
    """Trains sparsely in `lightning.pytorch.Trainer`: add it to ``callbacks``.

    `SparseTraining` is made when training starts, over the module's optimizer, with ``estimated_stepping_batches`` as
    ``total_steps``. Its state travels in Lightning's checkpoints.

    Args:
        settings: what `SparseTraining` takes beside model and optimizer: ``sparsity``, ``method`` and so on.

    Attributes:
        training: the `SparseTraining`, from the start of training on.
    """

    def __init__(self, **settings: Any) -> None:
        self.training: SparseTraining | None = None
        self._settings = settings
        self._state: dict[str, Any] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the masks, or take those of the checkpoint.

        Raises:
            RecipeError: the module has several optimizers.
        """
        if len(trainer.optimizers) != 1:
            raise RecipeError(
                f"SparseTrainingCallback works with one optimizer; the module has {len(trainer.optimizers)}. Make a "
                "SparseTraining for each in configure_optimizers"
            )
        if self.training is not None:  # of a run that broke off
            self.training.remove()
        settings = {"total_steps": int(trainer.estimated_stepping_batches)} | self._settings
        self.training = SparseTraining(pl_module, trainer.optimizers[0], **settings)
        if self._state is not None:
            self.training.load_state_dict(self._state)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the hooks off; the weights keep their zeros."""
        if self.training is not None:
            self.training.remove()

    def state_dict(self) -> dict[str, Any]:
        """Return the state that goes into Lightning's checkpoints."""
        return {} if self.training is None else self.training.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state of a checkpoint until training starts."""
        self._state = state_dict or None

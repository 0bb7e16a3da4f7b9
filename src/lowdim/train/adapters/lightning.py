"""Sparse training, and any other rider, in Lightning."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from lowdim.core.errors import CheckpointError, LowdimError, RecipeError
from lowdim.models.structure.selection import named_weights
from lowdim.train.adapters.begin import Beginning
from lowdim.train.keep import KeepZeros
from lowdim.train.ride import Rider
from lowdim.train.sparse.training import SparseTraining

R = TypeVar("R", bound=Rider)


class RiderCallback(Callback, Generic[R]):
    """Lets a `Rider` act around the optimizer steps of `lightning.pytorch.Trainer`: add it to ``callbacks``.

    The rider is made when training starts. Its state travels in Lightning's checkpoints. A second ``fit()`` goes on
    with what the first one left. Averages of the weights, such as those of StochasticWeightAveraging and of
    WeightAveraging, are found wherever a callback holds them.

    Args:
        rider: (model, optimizer, total_steps=..., **settings) -> the rider, on board of that optimizer.
        name: of its state in checkpoints; another one for each rider of a Trainer.
        settings: what else the rider takes.

    Attributes:
        training: the rider, from the start of training on.
    """

    def __init__(self, rider: Callable[..., R], name: str, **settings: Any) -> None:
        self.training: R | None = None
        self._name, self._beginning = name, Beginning(rider, settings)
        self._state: dict[str, Any] | None = None
        self._reads, self._rides = False, False

    @property
    def state_key(self) -> str:
        """The name of the state in checkpoints."""
        return self._name

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the weights alone until training starts; the fit before may have broken off."""
        self._rides = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the rider, and let it go on where the checkpoint or the fit before left the model.

        Raises:
            RecipeError: the module has several optimizers.
            CheckpointError: the checkpoint was not saved with this callback, or its state is not of its weights.
        """
        if len(trainer.optimizers) != 1:
            raise RecipeError(
                f"{type(self).__name__} works with one optimizer; the module has {len(trainer.optimizers)}. Make a "
                "rider for each in configure_optimizers"
            )
        earlier, saved = self.training, self._state
        if earlier is not None:
            earlier.remove()
        if saved is None and (self._reads or (trainer.global_step and earlier is None)):
            raise CheckpointError(
                f"training goes on from step {trainer.global_step} of a checkpoint that was saved without "
                f"{type(self).__name__}, so that it holds no state {self._name!r}. Load its weights into the module "
                "(load_from_checkpoint) and begin a training of its own, or go on from a checkpoint saved with it"
            )
        steps = trainer.estimated_stepping_batches  # of a training that is stopped by hand or by the clock: infinite
        total = int(steps) if math.isfinite(steps) else None
        self.training = self._beginning.make(pl_module, trainer.optimizers[0], total, saved, earlier)
        self._reads, self._rides, self._state = False, True, None

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the rider off, after it has acted on averages that were written into the module; zeros stay."""
        if self.training is not None:
            self._settle(trainer, pl_module)
            self._rides = False
            self.training.finish()

    def state_dict(self) -> dict[str, Any]:
        """Return the state that goes into Lightning's checkpoints."""
        return {} if self.training is None else self.training.state_dict()

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the state of a checkpoint until training starts; after it, take it as the module took the weights."""
        state = checkpoint.get("callbacks", {}).get(self._name) or None
        if trainer.state.fn == "fit":
            self._reads, self._state = True, state
        elif self.training is not None and state is not None and self._beginning.rode(pl_module):
            try:
                self.training.resume(state)
            except LowdimError as error:
                warnings.warn(f"the module has read a checkpoint, and {error}", stacklevel=2)

    # ---------------------------------------------------------------- averages, wherever they are read or written

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Act on averages: some are written into the module now."""
        self._settle(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Act on averages: some take the module's place now."""
        self._settle(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Act on averages: some are saved in the place of the module's weights."""
        self._settle(trainer, pl_module)

    def _settle(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.training is not None and self._rides:
            held = [value for callback in trainer.callbacks for value in vars(callback).values()]  # type: ignore[attr-defined]
            self.training.settle(*(value for value in held if _is_copy(value, pl_module)))


def _is_copy(value: Any, model: nn.Module) -> bool:
    """Tell whether something is another module with the same parameters: an average, whoever holds it."""
    if not isinstance(value, nn.Module) or value is model:
        return False
    names = named_weights(model)
    return names.keys() <= named_weights(value, names).keys()


class SparseTrainingCallback(RiderCallback[SparseTraining]):
    """Trains sparsely in `lightning.pytorch.Trainer`: add it to ``callbacks``.

    `SparseTraining` is made when training starts, over the module's optimizer, with ``estimated_stepping_batches`` as
    ``total_steps``, where that is finite. Its state travels in Lightning's checkpoints.

    Args:
        settings: what `SparseTraining` takes besides model and optimizer: ``sparsity``, ``method`` and so on.

    Attributes:
        training: the `SparseTraining`, from the start of training on.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(SparseTraining, type(self).__qualname__, **settings)


class KeepZerosCallback(RiderCallback[KeepZeros]):
    """Keeps the zeros of a pruned model that `lightning.pytorch.Trainer` fine-tunes: add it to ``callbacks``.

    Args:
        masks: which weights are kept, by their names in the module; None takes the zeros that it has when training
            starts.

    Attributes:
        training: the `KeepZeros`, from the start of training on.
    """

    def __init__(self, masks: Mapping[str, Tensor] | None = None) -> None:
        super().__init__(KeepZeros, type(self).__qualname__, masks=masks)

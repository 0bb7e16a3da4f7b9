"""Sparse training, and any other rider, in the Trainer of transformers."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lowdim.core.errors import CheckpointError, LowdimError, RecipeError
from lowdim.train.adapters.begin import Beginning
from lowdim.train.keep import KeepZeros
from lowdim.train.ride import Rider
from lowdim.train.sparse.training import SparseTraining

R = TypeVar("R", bound=Rider)


class RiderCallback(TrainerCallback, Generic[R]):
    """Lets a `Rider` act around the optimizer steps of `transformers.Trainer`: add it to ``callbacks``.

    The rider is made when training begins, and saved in every checkpoint as a file of its own. Where the Trainer loads
    its best checkpoint at the end, the rider takes the state in it. A second ``train()`` goes on with what the first
    one left. Put it behind callbacks that write weights, such as averages.

    Args:
        rider: (model, optimizer, total_steps=..., **settings) -> the rider, on board of that optimizer.
        name: of its file in checkpoints; another one for each rider of a Trainer.
        checkpoint: directory of the checkpoint to resume from, where it is not the Trainer's own output directory.
        settings: what else the rider takes.

    Attributes:
        training: the rider, from the beginning of training on.
    """

    def __init__(
        self, rider: Callable[..., R], name: str, checkpoint: str | Path | None = None, **settings: Any
    ) -> None:
        self.training: R | None = None
        self._file, self._checkpoint = f"{name}.pt", checkpoint
        self._beginning = Beginning(rider, settings)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Make the rider, and let it go on where the checkpoint or the training before left the model.

        Raises:
            CheckpointError: training goes on from a checkpoint that was not saved with this callback, or with other
                weights than the model has read.
            RecipeError: a checkpoint is given, and training does not go on from one.
        """
        earlier = self.training
        if earlier is not None:
            earlier.remove()
        if self._checkpoint is not None and state.global_step == 0:
            raise RecipeError(
                f"checkpoint is {self._checkpoint}, but the Trainer begins at step 0. Call "
                f"train(resume_from_checkpoint={str(self._checkpoint)!r}), or leave checkpoint out"
            )
        saved = self._saved(args, state) if state.global_step else None
        self.training = self._beginning.make(kwargs["model"], kwargs["optimizer"], state.max_steps, saved, earlier)

    def _saved(self, args: TrainingArguments, state: TrainerState) -> Mapping[str, Any]:
        """Return the rider's state in the checkpoint that training goes on from."""
        path = Path(self._checkpoint or _folder(args, state)) / self._file
        if not path.exists():
            raise CheckpointError(
                f"training goes on from step {state.global_step}, but {path} does not exist. Give the checkpoint's "
                f"directory to {type(self).__name__}(checkpoint=...); one saved without the callback has no such file"
            )
        found: Mapping[str, Any] = torch.load(path, weights_only=True)
        return found

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write the state beside the checkpoint."""
        if self.training is None:
            return
        saved = self.training.state_dict()
        if state.is_world_process_zero:
            path = _folder(args, state) / self._file
            partial = path.with_suffix(".partial")
            torch.save(saved, partial)
            os.replace(partial, path)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Let the rider off, after it has taken the state of the best checkpoint if that was loaded; zeros stay."""
        if self.training is None:
            return
        best = state.best_model_checkpoint if args.load_best_model_at_end else None
        if best is None:
            self.training.settle()
        elif (path := Path(best) / self._file).exists():
            try:
                self.training.resume(torch.load(path, weights_only=True))
            except LowdimError as error:
                warnings.warn(f"the best checkpoint was loaded, {best}, but {error}", stacklevel=2)
        else:
            warnings.warn(
                f"the best checkpoint was loaded, {best}, but it holds no {self._file}: its weights are handed back as "
                "they are, whatever the masks say",
                stacklevel=2,
            )
        self.training.finish()


def _folder(args: TrainingArguments, state: TrainerState) -> Path:
    """Return the directory of the last checkpoint; a search for settings has one of each run, a level deeper."""
    home, name = Path(args.output_dir or "."), f"checkpoint-{state.global_step}"
    deeper = [] if (home / name).is_dir() else sorted(home.glob(f"*/{name}"), key=lambda each: each.stat().st_mtime)
    return deeper[-1] if deeper else home / name


class SparseTrainingCallback(RiderCallback[SparseTraining]):
    """Trains sparsely in `transformers.Trainer`: add it to ``callbacks``.

    `SparseTraining` is made when training begins, over the Trainer's own optimizer, with its number of
    optimizer steps as ``total_steps``. Its state is saved in every checkpoint, and read again by
    ``train(resume_from_checkpoint=...)``.

    Args:
        checkpoint: directory of the checkpoint to resume from, where it is not the Trainer's own output directory.
        settings: what `SparseTraining` takes besides model and optimizer: ``sparsity``, ``method`` and so on.

    Attributes:
        training: the `SparseTraining`, from the beginning of training on.
    """

    def __init__(self, checkpoint: str | Path | None = None, **settings: Any) -> None:
        super().__init__(SparseTraining, "sparse_training", checkpoint, **settings)


class KeepZerosCallback(RiderCallback[KeepZeros]):
    """Keeps the zeros of a pruned model that `transformers.Trainer` fine-tunes: add it to ``callbacks``.

    Args:
        masks: which weights are kept, such as ``Masks.load("pruned/")``; None takes the zeros that the model has when
            training begins.
        checkpoint: directory of the checkpoint to resume from, where it is not the Trainer's own output directory.

    Attributes:
        training: the `KeepZeros`, from the beginning of training on.
    """

    def __init__(self, masks: Mapping[str, Tensor] | None = None, checkpoint: str | Path | None = None) -> None:
        super().__init__(KeepZeros, "keep_zeros", checkpoint, masks=masks)

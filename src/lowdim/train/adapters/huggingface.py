"""Sparse training, and any other rider, in the Trainer of transformers."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lowdim.core.errors import CheckpointError
from lowdim.train.ride import Rider
from lowdim.train.sparse.training import SparseTraining

R = TypeVar("R", bound=Rider)


class RiderCallback(TrainerCallback, Generic[R]):
    """Lets a `Rider` act around the optimizer steps of `transformers.Trainer`: add it to ``callbacks``.

    The rider is made when training begins, and saved in every checkpoint as a file of its own.

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
        self._rider, self._file = rider, f"{name}.pt"
        self._checkpoint, self._settings = checkpoint, settings

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Make the rider, and let it read its state in the checkpoint.

        Raises:
            CheckpointError: training goes on from a checkpoint that was not saved with this callback.
        """
        if self.training is not None:  # of a run that broke off
            self.training.remove()
        settings = {"total_steps": state.max_steps} | self._settings
        self.training = self._rider(kwargs["model"], kwargs["optimizer"], **settings)
        if state.global_step == 0:
            return
        folder = self._checkpoint or Path(args.output_dir or ".") / f"checkpoint-{state.global_step}"
        path = Path(folder) / self._file
        if not path.exists():
            raise CheckpointError(
                f"training goes on from step {state.global_step}, but {path} does not exist. Give the checkpoint's "
                f"directory to {type(self).__name__}(checkpoint=...); one saved without the callback has no such file"
            )
        self.training.load_state_dict(torch.load(path, weights_only=True))

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write the state beside the checkpoint."""
        if self.training is None:
            return
        saved = self.training.state_dict()
        if state.is_world_process_zero:
            path = Path(args.output_dir or ".") / f"checkpoint-{state.global_step}" / self._file
            partial = path.with_suffix(".partial")
            torch.save(saved, partial)
            os.replace(partial, path)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Let the rider off; sparse weights keep their zeros."""
        if self.training is not None:
            self.training.remove()


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

    Example:
        >>> from lowdim.train import RigL
        >>> callback = SparseTrainingCallback(sparsity=0.9, method=RigL(every=100))
        >>> callback.training is None
        True
    """

    def __init__(self, checkpoint: str | Path | None = None, **settings: Any) -> None:
        super().__init__(SparseTraining, "sparse_training", checkpoint, **settings)

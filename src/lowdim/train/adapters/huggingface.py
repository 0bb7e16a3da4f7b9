"""Sparse training in the Trainer of transformers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lowdim.core.errors import CheckpointError
from lowdim.train.sparse.training import SparseTraining

FILE = "sparse_training.pt"


class SparseTrainingCallback(TrainerCallback):
    """Trains sparsely in `transformers.Trainer`: add it to ``callbacks``.

    `SparseTraining` is made when training begins, over the Trainer's own optimizer, with its number of
    optimizer steps as ``total_steps``. Its state is saved in every checkpoint, and read again by
    ``train(resume_from_checkpoint=...)``.

    Args:
        checkpoint: directory of the checkpoint to resume from, where it is not the Trainer's own output directory.
        settings: what `SparseTraining` takes beside model and optimizer: ``sparsity``, ``method`` and so on.

    Attributes:
        training: the `SparseTraining`, from the beginning of training on.

    Example:
        >>> from lowdim.train import RigL
        >>> callback = SparseTrainingCallback(sparsity=0.9, method=RigL(every=100))
        >>> callback.training is None
        True
    """

    def __init__(self, checkpoint: str | Path | None = None, **settings: Any) -> None:
        self.training: SparseTraining | None = None
        self._checkpoint, self._settings = checkpoint, settings

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Make the masks, or read those of the checkpoint.

        Raises:
            CheckpointError: training goes on from a checkpoint that was not saved with this callback.
        """
        if self.training is not None:  # of a run that broke off
            self.training.remove()
        settings = {"total_steps": state.max_steps} | self._settings
        self.training = SparseTraining(kwargs["model"], kwargs["optimizer"], **settings)
        if state.global_step == 0:
            return
        folder = self._checkpoint or Path(args.output_dir or ".") / f"checkpoint-{state.global_step}"
        path = Path(folder) / FILE
        if not path.exists():
            raise CheckpointError(
                f"training goes on from step {state.global_step}, but {path} does not exist. Give the checkpoint's "
                "directory to SparseTrainingCallback(checkpoint=...); one saved without the callback has no masks"
            )
        self.training.load_state_dict(torch.load(path, weights_only=True))

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write the state beside the checkpoint."""
        if self.training is None:
            return
        saved = self.training.state_dict()
        if state.is_world_process_zero:
            path = Path(args.output_dir or ".") / f"checkpoint-{state.global_step}" / FILE
            partial = path.with_suffix(".partial")
            torch.save(saved, partial)
            os.replace(partial, path)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the hooks off; the weights keep their zeros."""
        if self.training is not None:
            self.training.remove()

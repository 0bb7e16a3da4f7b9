"""A causal LM opened as a stream of blocks, wherever it is: in memory, in a directory, on the hub, in a GGUF file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel

from lowdim.core.errors import LowdimError
from lowdim.models.disk.checkpoint import Checkpoint
from lowdim.models.disk.source import Source, resolve
from lowdim.models.walk.skeleton import empty_model
from lowdim.models.walk.stream import Stream, compute_dtype


@dataclass(frozen=True)
class Opened:
    """A model whose blocks can be walked.

    Attributes:
        stream: the model's blocks.
        source: where a checkpoint was found; ``None`` for a model in memory.
        checkpoint: the weights on disk; ``None`` for a model in memory.
        stored: dtype of the weights.
    """

    stream: Stream
    source: Source | None
    checkpoint: Checkpoint | None
    stored: torch.dtype

    @property
    def config(self) -> Any:
        """The model's configuration."""
        return self.stream.model.config

    @property
    def name(self) -> str:
        """How the user named the model."""
        if self.source:
            return self.source.spec
        name: str = self.config.name_or_path or type(self.stream.model).__name__
        return name

    def tokenizer(self) -> Any:
        """Return the tokenizer that lies beside the weights, ``None`` if there is none."""
        if self.source is None:
            return None
        try:
            return AutoTokenizer.from_pretrained(self.source.path, local_files_only=True)
        except (OSError, ValueError, ImportError):
            return None


def pick_device(requested: str) -> torch.device:
    """Return the device that a name means; "auto" is a GPU where there is one."""
    if requested == "cuda" and not torch.cuda.is_available():
        raise LowdimError("device='cuda' was asked for, and torch sees no GPU. Use device='auto' or 'cpu'.")
    return torch.device("cuda" if requested != "cpu" and torch.cuda.is_available() else "cpu")


def open_model(
    model: PreTrainedModel | str | Path,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    compute: str = "auto",
    device: str = "auto",
) -> Opened:
    """Open a model; of a checkpoint no weight is read.

    Args:
        model: a Transformers model, or whatever `lowdim.models.disk.source.resolve` finds.
        revision: branch, tag or commit of a hub id.
        dtype: of the weights as they are read, "auto" for that of the checkpoint; a model in memory keeps its own.
        compute: dtype of the forwards of a checkpoint's blocks.
        device: where a checkpoint's blocks run.

    Raises:
        LowdimError: the model cannot be used.
    """
    if isinstance(model, PreTrainedModel):
        return Opened(Stream(model), None, None, next(model.parameters()).dtype)
    source = resolve(str(model), revision=revision, dtype=dtype)
    checkpoint = Checkpoint(source.path)
    stored = getattr(torch, source.dtype)
    assert isinstance(stored, torch.dtype)
    where = pick_device(device)
    stream = Stream(
        empty_model(source.path, stored),
        checkpoint,
        stored=stored,
        compute=compute_dtype(compute, stored, where),
        device=where,
    )
    return Opened(stream, source, checkpoint, stored)

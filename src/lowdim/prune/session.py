"""A model opened for pruning: where it comes from, its blocks, its prunable layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel

from lowdim.core.allocation import LayerInfo
from lowdim.core.errors import LowdimError
from lowdim.models.checkpoint import Checkpoint
from lowdim.models.skeleton import empty_model
from lowdim.models.source import Source, resolve
from lowdim.models.stream import Stream, compute_dtype
from lowdim.prune.recipe import Recipe


@dataclass(frozen=True)
class Session:
    """What a run works on.

    Attributes:
        recipe: the recipe.
        stream: the model's blocks.
        source: where a checkpoint was found; ``None`` for a model in memory.
        checkpoint: the weights on disk; ``None`` for a model in memory.
        stored: dtype of the weights that are written.
        layers: the layers to prune, in order.
        skipped: ``(name, reason)`` of every matrix in the blocks that is not pruned.
    """

    recipe: Recipe
    stream: Stream
    source: Source | None
    checkpoint: Checkpoint | None
    stored: torch.dtype
    layers: list[LayerInfo]
    skipped: list[tuple[str, str]]

    @property
    def config(self) -> Any:
        """The model's configuration."""
        return self.stream.model.config

    @property
    def name(self) -> str:
        """How the user named the model."""
        return (
            self.source.spec
            if self.source
            else (self.config.name_or_path or type(self.stream.model).__name__)
        )

    def tokenizer(self) -> Any:
        """Return the tokenizer that lies beside the weights, ``None`` if there is none."""
        if self.source is None:
            return None
        try:
            return AutoTokenizer.from_pretrained(self.source.path, local_files_only=True)
        except (OSError, ValueError, ImportError):
            return None


def pick_device(requested: str) -> torch.device:
    """Return the device that a recipe means; "auto" is a GPU where there is one.

    Raises:
        LowdimError: a GPU was asked for and there is none.
    """
    if requested == "cuda" and not torch.cuda.is_available():
        raise LowdimError("device='cuda' was asked for, and torch sees no GPU. Use device='auto' or 'cpu'.")
    return torch.device("cuda" if requested != "cpu" and torch.cuda.is_available() else "cpu")


def open_session(
    model: PreTrainedModel | str | Path, recipe: Recipe, *, revision: str | None = None
) -> Session:
    """Open a model and find what a recipe prunes in it; no weight is read.

    Raises:
        LowdimError: the model cannot be used, a target expression matches nothing, or the pattern fits a layer's shape
            not.
    """
    source = checkpoint = None
    if isinstance(model, PreTrainedModel):
        stream = Stream(model)
        stored = next(model.parameters()).dtype
    else:
        source = resolve(str(model), revision=revision, dtype=recipe.dtype)
        checkpoint = Checkpoint(source.path)
        stored = getattr(torch, source.dtype)
        device = pick_device(recipe.device)
        stream = Stream(
            empty_model(source.path, stored),
            checkpoint,
            stored=stored,
            compute=compute_dtype(recipe.compute, stored, device),
            device=device,
        )
    layers, skipped = _layers(stream, recipe)
    return Session(recipe, stream, source, checkpoint, stored, layers, skipped)


def _layers(stream: Stream, recipe: Recipe) -> tuple[list[LayerInfo], list[tuple[str, str]]]:
    infos: list[LayerInfo] = []
    skipped: list[tuple[str, str]] = []
    for index in range(len(stream)):
        layers, left = stream.describe(index)
        infos += [LayerInfo(layer.name, index, *layer.shape) for layer in layers]
        skipped += left
    if not infos:
        raise LowdimError(
            f"found no prunable layer in {type(stream.model).__name__}: "
            f"{skipped[0][0] + ': ' + skipped[0][1] if skipped else 'its blocks hold no matrix'}."
        )
    chosen = set(recipe.targets.select([info.name for info in infos]))
    skipped += [(info.name, "left out by targets") for info in infos if info.name not in chosen]
    kept = [info for info in infos if info.name in chosen]
    for info in kept:
        recipe.legal.check_shape(info.name, info.rows, info.cols)
    return kept, skipped


def sizes(layers: Sequence[LayerInfo]) -> int:
    """Return the number of prunable weights."""
    return sum(info.rows * info.cols for info in layers)

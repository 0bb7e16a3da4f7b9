"""A model opened for pruning: where it comes from, its blocks, its prunable layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel

from lowdim.core.allocation import LayerInfo
from lowdim.core.allocation.base import by_block
from lowdim.core.errors import LowdimError
from lowdim.models.walk.opened import Opened, open_model
from lowdim.models.walk.stream import Stream
from lowdim.prune.recipe import Recipe


@dataclass(frozen=True)
class Session(Opened):
    """What a run works on: an opened model and what is to happen to it.

    Attributes:
        recipe: the recipe.
        layers: the layers to prune, in order.
        skipped: ``(name, reason)`` of every matrix in the blocks that is not pruned.
        gradients: of the loss with respect to the layers' weights, ``[out, in]`` by name, for a score that needs them.
    """

    recipe: Recipe
    layers: list[LayerInfo]
    skipped: list[tuple[str, str]]
    gradients: dict[str, Tensor] = field(default_factory=dict)


def open_session(model: PreTrainedModel | str | Path, recipe: Recipe, *, revision: str | None = None) -> Session:
    """Open a model and find what a recipe prunes in it; no weight is read.

    Raises:
        LowdimError: the model cannot be used, a target expression matches nothing, or the pattern does not fit the
            shape of a layer.
    """
    opened = open_model(model, revision=revision, dtype=recipe.dtype, compute=recipe.compute, device=recipe.device)
    layers, skipped = _layers(opened.stream, recipe)
    return Session(**vars(opened), recipe=recipe, layers=layers, skipped=skipped)


def _layers(stream: Stream, recipe: Recipe) -> tuple[list[LayerInfo], list[tuple[str, str]]]:
    infos: list[LayerInfo] = []
    skipped: list[tuple[str, str]] = []
    for index in range(len(stream)):
        layers, left = stream.describe(index)
        infos += [LayerInfo(layer.name, index, layer.shape) for layer in layers]
        skipped += left
    if not infos:
        raise LowdimError(
            f"found no prunable layer in {type(stream.model).__name__}: "
            f"{skipped[0][0] + ': ' + skipped[0][1] if skipped else 'its blocks hold no matrix'}."
        )
    chosen = set(recipe.targets.select([info.name for info in infos], recipe.schema_version))
    skipped += [(info.name, "left out by targets") for info in infos if info.name not in chosen]
    kept = [info for info in infos if info.name in chosen]
    for info in kept:
        recipe.legal.check_shape(info.name, info.rows, info.cols)
    for members in by_block(kept).values():
        recipe.pattern.check_block([info.name for info in members], stream.model.config)
    return kept, skipped


def sizes(layers: Sequence[LayerInfo]) -> int:
    """Return the number of prunable weights."""
    return sum(info.rows * info.cols for info in layers)

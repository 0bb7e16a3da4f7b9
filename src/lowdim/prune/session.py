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
from lowdim.core.recipe.families import name_of
from lowdim.core.score.base import GRADIENT
from lowdim.models.walk.opened import Opened, open_model
from lowdim.models.walk.stream import Stream
from lowdim.models.walk.support import prunable
from lowdim.nn.slorb import slorb_of
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
    opened = open_model(
        model,
        revision=revision,
        dtype=recipe.dtype,
        compute=recipe.compute,
        device=recipe.device,
        trust_remote_code=recipe.trust_remote_code,
    )
    if beside := next(iter(slorb_of(opened.stream.model)), None):
        raise LowdimError(
            f"{beside} has a SLoRB beside it, which masks and repairs would not know of; prune the model that it was "
            "put into"
        )
    if opened.stream.skeleton is not None:
        opened.stream.skeleton.check_ways_back()
    layers, skipped = _layers(opened.stream, recipe)
    if needs_data(recipe):
        _check_walk(opened.stream, recipe)
    return Session(**vars(opened), recipe=recipe, layers=layers, skipped=skipped)


def needs_data(recipe: Recipe) -> bool:
    """Whether a recipe looks at calibration data at all."""
    if recipe.idle:
        return False
    scale = recipe.allocation.scale_from
    return bool(recipe.needs) or scale == "wanda" or (scale == "score" and bool(recipe.score.needs))


def _check_walk(stream: Stream, recipe: Recipe) -> None:
    if stream.manners.hands_on and GRADIENT in recipe.needs:
        raise LowdimError(
            f"score={name_of('score', recipe.score)!r} needs gradients, and they are taken through the hidden states "
            f"alone, while blocks of {type(stream.model).__name__} hand each other more. Take a score without "
            "gradients, such as 'wanda'."
        )


def _layers(stream: Stream, recipe: Recipe) -> tuple[list[LayerInfo], list[tuple[str, str]]]:
    found, skipped = prunable(stream)
    infos = [LayerInfo(layer.name, index, layer.shape) for index, layer in found]
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

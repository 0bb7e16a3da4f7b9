"""What a recipe does to some blocks and layers of its model: factors, 2:4 masks, turns; and what is said of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim import Optimizer

from lowdim.core.errors import CheckpointError, RecipeError
from lowdim.core.recipe import families, which
from lowdim.models import ranks
from lowdim.models.disk.checkpoint import Checkpoint
from lowdim.nn.blocks import in_attention, linear_layers
from lowdim.nn.lowrank import LowRankLinear, factorise_
from lowdim.train.nm.base import FromScratch
from lowdim.train.nm.from_scratch import SparseFromScratch
from lowdim.train.pretrain.recipe import Layers, Pretraining
from lowdim.train.pretrain.sequences import Batches
from lowdim.train.riders.layer_sampling import LayerSampling
from lowdim.train.riders.sampling import Sampling

if TYPE_CHECKING:
    from lowdim.train.pretrain.prepare import Prepared
    from lowdim.train.pretrain.run import Run

SPARSE, SAMPLING, RANK = "from-scratch", "sampling", "rank"


def factorise(recipe: Pretraining, model: nn.Module) -> None:
    """Give the layers of a model that the recipe names their factors.

    Raises:
        RecipeError: no layer fits its words, or the rule factorises none.
    """
    if recipe.rank is None:
        return
    found = recipe.rank.of(model, list(_chosen(model, recipe.factors, "factors")), recipe.factors.keep)
    if not found:
        raise RecipeError(
            f"rank {families.name_of(RANK, recipe.rank)} factorises none of the layers at factors.keep="
            f"{recipe.factors.keep:g}. Keep less, or choose another rank."
        )
    factorise_(model, found, recipe.factors.init, recipe.seed)


def masked(prepared: Prepared, rule: FromScratch, model: nn.Module, optimizer: Optimizer) -> SparseFromScratch:
    """Let the layers of a model that the recipe names compute with 2:4 weights."""
    chosen: Any = _chosen(model, prepared.recipe.sparse, "sparse")
    return SparseFromScratch(chosen, rule, optimizer, prepared.steps, seed=prepared.recipe.seed)


def sampled(prepared: Prepared, sampling: Sampling, model: nn.Module, optimizer: Optimizer) -> LayerSampling:
    """Let blocks of a model train in turns; on every process after the same data."""
    recipe, data = prepared.recipe, None
    if sampling.measures:
        batches = Batches(prepared.text, recipe.batch, recipe.accumulate * ranks.size(), recipe.seed)
        data = [{"input_ids": micro.ids, "labels": micro.targets} for micro in batches.step(0)]
    return LayerSampling(model, optimizer, sampling, data=data, seed=recipe.seed)


def _chosen(model: nn.Module, layers: Layers, key: str) -> dict[str, nn.Linear]:
    """Return the linear layers of the blocks that a section of the recipe means, by name.

    Raises:
        RecipeError: it means none.
    """
    found = linear_layers(ranks.unwrapped(model))
    names = [f"{name}.weight" for name in found]
    can = "be 2:4" if key == "sparse" else "be factors"
    wanted = which.choose(names, layers.include or None, layers.exclude, f"{key}.", can=can)
    if key == "sparse" and not layers.include:
        wanted = [name for name in wanted if not in_attention(name)]
    if not wanted:
        raise RecipeError(
            f"{key} leaves none of the {len(names)} linear layers of the blocks. Name some: {key}.include."
        )
    return {name: found[name] for name in (each.removesuffix(".weight") for each in wanted)}


# ---------------------------------------------------------------- what is said


def _factors(run: Run) -> dict[str, LowRankLinear]:
    named = ranks.unwrapped(run.model).named_modules()
    return {name: each for name, each in named if isinstance(each, LowRankLinear)}


def notes(prepared: Prepared, run: Run) -> tuple[str, ...]:
    """Return what a plan says of blocks and layers."""
    recipe, found = prepared.recipe, list[str]()
    if recipe.rank is not None:
        factors = _factors(run).values()
        held = sum(each.a.numel() + each.b.numel() for each in factors)
        whole = sum(each.in_features * each.out_features for each in factors)
        found.append(
            f"{len(factors)} layers are factors by {families.name_of(RANK, recipe.rank)}: {held:,} weights in the place"
            f" of {whole:,}; written {'as factors' if recipe.factors.written == 'factors' else 'dense'}"
        )
    for rider in run.loop.riders:
        if isinstance(rider, SparseFromScratch):
            size = sum(mask.numel() for mask in rider.masks.values())
            dense = sum(rider.rule.dense(step, run.steps) for step in range(1, run.steps + 1))
            end = f"the last {dense:,} steps, and what is written, are dense" if dense else "written so"
            name = families.name_of(SPARSE, rider.rule)
            found.append(
                f"{len(rider.masks)} layers, {size:,} weights, compute in {rider.rule.groups} by {name}; {end}"
            )
        if isinstance(rider, LayerSampling):
            each, name = recipe.sampling, families.name_of(SAMPLING, recipe.sampling)
            assert each is not None
            found.append(
                f"{each.active} of {len(rider.probabilities)} blocks train at a time by {name}, drawn anew every "
                f"{each.every} steps"
            )
    return tuple(found)


def facts(prepared: Prepared, run: Run) -> dict[str, Any]:
    """Return what the output says of blocks and layers, where the recipe acts on some."""
    found: dict[str, Any] = {}
    if prepared.recipe.rank is not None:
        found[RANK] = {"ranks": {name: each.rank for name, each in _factors(run).items()}}
    for rider in run.loop.riders:
        if isinstance(rider, SparseFromScratch):
            dense = rider.dense(run.loop.step + 1)
            found[SPARSE] = {
                "layers": list(rider.masks),
                "pattern": str(rider.rule.groups),
                "dense": dense,
                "choices": list(rider.history),
            }
        if isinstance(rider, LayerSampling):
            turns = [
                sum(block in turn["active"] for turn in rider.history) for block in range(len(rider.probabilities))
            ]
            found[SAMPLING] = {"probabilities": rider.probabilities, "turns": turns}
    return found


def read_back(place: Path, found: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is said of N:M layers, with the zeros that the files of a model hold.

    Args:
        place: the directory that was written.
        found: see `facts`.

    Raises:
        CheckpointError: a layer that trained so to the end has more in the files.
    """
    if SPARSE not in found:
        return {}
    said, written, zeros, size = found[SPARSE], Checkpoint(place), 0, 0
    keep, group = map(int, said["pattern"].split(":"))
    for name in said["layers"]:
        kept = written.read(f"{name}.weight") != 0
        if not said["dense"] and int(kept.unflatten(1, (-1, group)).sum(2).max()) > keep:
            raise CheckpointError(
                f"{name} was trained in {said['pattern']}, and more of it is in the files; nothing is written"
            )
        zeros, size = zeros + int((~kept).sum()), size + kept.numel()
    return {SPARSE: {**said, "weights": size, "zeros": zeros, "sparsity": zeros / size}}

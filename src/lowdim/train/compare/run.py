"""A whole run: the twins, then the sparse network; each epoch is durable before the next."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lowdim.core.errors import RecipeError
from lowdim.core.machine import machine
from lowdim.core.progress import Progress, Silent
from lowdim.data import classification
from lowdim.data.classification import Dataset
from lowdim.runs import sidecar
from lowdim.runs.clock import peak_memory
from lowdim.runs.directory import Directory
from lowdim.train.compare import TITLES, results
from lowdim.train.compare.member import Member, Role, roles, steps_per_epoch
from lowdim.train.compare.recipe import TrainingRecipe
from lowdim.train.compare.store import CHECKPOINT, DONE, Store


@dataclass(frozen=True)
class TrainingResult:
    """What a run found.

    Attributes:
        facts: what ``training.json`` holds: equal for equal recipes, data and versions.
        run: what ``OUT.run.json`` holds: times, memory, the machine.
        out: the directory, if one was asked for.
    """

    facts: dict[str, Any]
    run: dict[str, Any]
    out: Path | None = None

    def member(self, role: Role) -> dict[str, Any]:
        """Return what is known of one network."""
        found: dict[str, Any] = self.facts["members"][role]
        return found


def train(
    recipe: TrainingRecipe,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    data: Dataset | None = None,
) -> TrainingResult:
    """Train the twins and the sparse network of a recipe, and measure each once on the test examples.

    Args:
        recipe: what to train.
        out: a directory that must not exist; it gets the networks, their masks and ``training.json``. Without it
            nothing is written and nothing can be resumed.
        resume: go on where a killed run stopped, at the end of its last epoch.
        overwrite: replace an existing output, at the end.
        progress: told of every step.
        data: what to train on instead of what the recipe names, cut already.

    Raises:
        RecipeError: the recipe asks for the impossible.
        ResumeError: the unfinished run was another.
        AssetError: the data cannot be fetched.
        OutputError: the output exists or cannot be written.
    """
    progress = progress or Silent()
    if recipe.device == "cuda" and not torch.cuda.is_available():
        raise RecipeError("device 'cuda' was asked for, and torch finds no GPU. Choose device: auto or cpu.")
    if out is None:
        data = data or _load(recipe)
        return _run(_sized(recipe, data), data, None, progress)
    with Directory(out, overwrite, resume) as directory:
        fresh = not directory.state
        data, store = data or _load(recipe), Store(directory)
        recipe = _sized(recipe, data)
        directory.begin({"recipe": recipe.to_dict(), "data": data.fingerprint()})
        try:
            result = _run(recipe, data, store, progress)
        except RecipeError:
            if fresh:  # nothing was trained that could be gone on from
                directory.reset()
            raise
        directory.write_json(results.FILE, result.facts)
        store.drop(CHECKPOINT, *(f"{role}{DONE}" for role in roles(recipe)))
        path = directory.finish()
    sidecar.write_sidecar(path, result.run)
    return TrainingResult(result.facts, result.run, path)


def _sized(recipe: TrainingRecipe, data: Dataset) -> TrainingRecipe:
    return recipe.sized(steps_per_epoch(recipe, data) * recipe.epochs)


def _load(recipe: TrainingRecipe) -> Dataset:
    chosen = recipe.data
    return classification.load(chosen.name, validation=chosen.validation, limit=chosen.limit, seed=chosen.seed)


def _run(recipe: TrainingRecipe, data: Dataset, store: Store | None, progress: Progress) -> TrainingResult:
    free = recipe.device == "auto" and recipe.executor == "masked" and torch.cuda.is_available()
    device = torch.device("cuda" if recipe.device == "cuda" or free else "cpu")
    finished = {role: done for role in roles(recipe) if store and (done := store.get(f"{role}{DONE}"))}
    # All are made, and what cannot be is refused, before one is trained.
    left = [role for role in roles(recipe) if role not in finished]
    for member in [Member(role, recipe, data, device) for role in left if role != "resampled"]:
        finished[member.role] = _trained(member, store, progress)
    if "resampled" in left:
        counts = {layer["name"]: layer["kept"] for layer in finished["sparse"]["facts"]["layers"]}
        finished["resampled"] = _trained(Member("resampled", recipe, data, device, counts), store, progress)
    facts = results.gather(recipe, data, finished)
    run = {
        "stages": [{"name": TITLES[role], "seconds": round(d["seconds"], 3)} for role, d in finished.items()],
        "peak_bytes": peak_memory(),
        "device": str(device),
        "machine": machine(),
        "command": sidecar.command(),
    }
    return TrainingResult(facts, run)


def _trained(member: Member, store: Store | None, progress: Progress) -> dict[str, Any]:
    """Train a network from where an earlier attempt left it; return its results."""
    role, recipe = member.role, member.recipe
    begun = store.get(CHECKPOINT) if store else None
    if begun is not None and begun["role"] == role:
        member.load(begun["state"])
    steps = steps_per_epoch(recipe, member.data)
    with progress.stage(TITLES[role], member.steps, "steps") as stage:
        stage.advance(member.epoch * steps)
        while member.epoch < recipe.epochs:
            member.train_epoch(stage.advance)
            if store and member.epoch < recipe.epochs:
                store.put(CHECKPOINT, {"role": role, "state": member.state()})
    record = results.record(member)
    if store:
        store.put_network(f"{role}.safetensors", member.net.state_dict())
        if member.sparsity is not None:
            member.sparsity.masks.save(store.directory.partial / f"{role}.masks.safetensors")
        store.put(f"{role}{DONE}", record)
    return record

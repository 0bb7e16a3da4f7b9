"""A whole run: the twins, then the sparse network; each epoch is durable before the next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lowdim.core.errors import LowdimError, RecipeError, clash
from lowdim.core.machine import machine
from lowdim.core.progress import Progress, Silent
from lowdim.core.recipe import families
from lowdim.data import classification
from lowdim.data.classification import Dataset
from lowdim.data.errors import DataError
from lowdim.data.select.ranks import Ranks
from lowdim.runs import sidecar
from lowdim.runs.clock import peak_memory
from lowdim.runs.directory import Directory, check_idle
from lowdim.train.compare import TITLES, results, samples
from lowdim.train.compare.member import Member, Role, roles, steps_of
from lowdim.train.compare.recipe import TrainingRecipe
from lowdim.train.compare.store import CHECKPOINT, DONE, Store
from lowdim.train.compare.told import Labelled, Told, read, told


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
    ranks: Ranks | None = None,
    groups: Mapping[str, Labelled] | None = None,
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
        ranks: of its training samples, instead of those that the recipe names.
        groups: of its "train", "validation" and "test" samples, which objectives that need groups train with; without
            them those that the recipe's data has.

    Raises:
        RecipeError: the recipe asks for the impossible.
        DataError: ranks or groups are of other samples, or a part of the data is empty.
        ResumeError: the unfinished run was another.
        AssetError: the data cannot be fetched.
        OutputError: the output exists or cannot be written.
    """
    check_idle(out, resume, overwrite)
    progress = progress or Silent()
    if recipe.device == "cuda" and not torch.cuda.is_available():
        raise RecipeError("device 'cuda' was asked for, and torch finds no GPU. Choose device: auto or cpu.")
    if recipe.ranks is not None and ranks is None:
        ranks = Ranks.load(recipe.ranks.path)  # refused before the data is read
    named = recipe.groups is not None
    if named and not (data is None and groups is None):
        why, remedy = "it is read with the recipe's data", "Leave it out, and give the argument groups"
        raise clash(f"groups={recipe.groups!r}", "data or groups given to train()", why, remedy)
    cued = named or bool(classification.find(recipe.data.name).cues)
    labelled = data is None and cued if groups is None else "train" in groups
    samples.check_known(recipe, groups=labelled, ranks=ranks is not None)

    def known() -> tuple[TrainingRecipe, Dataset, Told]:
        found, labels = (data, groups or {}) if data is not None else read(recipe)
        _check_parts(found)
        return _sized(recipe, found), found, told(recipe, found, ranks, labels if groups is None else groups)

    if out is None:
        return _run(*known(), None, progress)
    with Directory(out, overwrite, resume) as directory:
        fresh = not directory.state
        (recipe, data, about), store = known(), Store(directory)
        directory.begin({"recipe": recipe.to_dict(), "data": data.fingerprint(), **about.fingerprint()})
        try:
            result = _run(recipe, data, about, store, progress)
        except LowdimError:
            if fresh:  # nothing was trained that could be gone on from
                directory.reset()
            raise
        directory.write_json(results.FILE, result.facts)
        store.drop(CHECKPOINT, *(f"{role}{DONE}" for role in ("early", *roles(recipe))))
        path = directory.finish()
    sidecar.write_sidecar(path, result.run)
    return TrainingResult(result.facts, result.run, path)


def _check_parts(data: Dataset) -> None:
    """Refuse data of which nothing is left to train on, to choose on, or to measure by."""
    for part in ("train", "validation", "test"):
        if not len(getattr(data, part).y):
            raise DataError(
                f"the {part} part of data {data.name!r} is empty, and networks are trained on one part, watched on the "
                "next and measured on the last. Give data with all three: lowdim.rank(..., validation=0.1) cuts "
                "samples of yours, and so does the path of a folder or table as data of the recipe."
            )


def _sized(recipe: TrainingRecipe, data: Dataset) -> TrainingRecipe:
    return recipe.sized(sum(steps_of(recipe, data)))


def _run(recipe: TrainingRecipe, data: Dataset, told: Told, store: Store | None, progress: Progress) -> TrainingResult:
    free = recipe.device == "auto" and recipe.executor == "masked" and torch.cuda.is_available()
    device = torch.device("cuda" if recipe.device == "cuda" or free else "cpu")
    finished = {role: done for role in roles(recipe) if store and (done := store.get(f"{role}{DONE}"))}
    # All are made, and what cannot be is refused, before one is trained.
    left = [role for role in roles(recipe) if role not in finished]
    first = _first(recipe, data, told, device, store, progress) if recipe.objective.early else None
    made: dict[str, Any] = {"told": told, "wrong": None if first is None else first["wrong"]}
    for member in [Member(role, recipe, data, device, **made) for role in left if role != "resampled"]:
        finished[member.role] = _trained(member, store, progress)
    if "resampled" in left:
        counts = {layer["name"]: layer["kept"] for layer in finished["sparse"]["facts"]["layers"]}
        finished["resampled"] = _trained(Member("resampled", recipe, data, device, counts, **made), store, progress)
    facts = results.gather(recipe, data, finished, told, first)
    run = {
        "stages": [{"name": TITLES[role], "seconds": round(d["seconds"], 3)} for role, d in finished.items()],
        **({} if first is None else {"before": [{"name": TITLES["early"], "seconds": round(first["seconds"], 3)}]}),
        "peak_bytes": peak_memory(),
        "device": str(device),
        "machine": machine(),
        "command": sidecar.command(),
    }
    return TrainingResult(facts, run)


def _first(
    recipe: TrainingRecipe, data: Dataset, told: Told, device: torch.device, store: Store | None, progress: Progress
) -> dict[str, Any]:
    """Return what a network finds that the recipe's objective wants trained before all others, plainly and dense."""
    done: dict[str, Any] | None = store.get(f"early{DONE}") if store else None
    if done is not None:
        return done
    plain = {"objective": families.build("objective", "erm"), "sampler": families.build("sampler", "shuffled")}
    short = recipe.model_copy(update={**plain, "epochs": recipe.objective.early})
    member = Member("early", short, data, device, told=told)
    _train(member, store, progress)
    found = results.early(member)
    if store:
        store.put(f"early{DONE}", found)
    return found


def _trained(member: Member, store: Store | None, progress: Progress) -> dict[str, Any]:
    """Train a network from where an earlier attempt left it; return its results."""
    role = member.role
    _train(member, store, progress)
    record = results.record(member)
    if store:
        store.put_network(f"{role}.safetensors", member.net.state_dict())
        if member.sparsity is not None:
            member.sparsity.masks.save(store.directory.partial / f"{role}.masks.safetensors")
        store.put(f"{role}{DONE}", record)
    return record


def _train(member: Member, store: Store | None, progress: Progress) -> None:
    role, recipe = member.role, member.recipe
    begun = store.get(CHECKPOINT) if store else None
    if begun is not None and begun["role"] == role:
        member.load(begun["state"])
    steps = steps_of(recipe, member.data)
    with progress.stage(TITLES[role], member.steps, "steps") as stage:
        stage.advance(sum(steps[: member.epoch]))
        while member.epoch < recipe.epochs:
            member.train_epoch(stage.advance)
            if store and member.epoch < recipe.epochs:
                store.put(CHECKPOINT, {"role": role, "state": member.state()})

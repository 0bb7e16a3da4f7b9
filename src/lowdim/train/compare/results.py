"""What a run says of itself in ``training.json``: no times and no hosts, so that equal inputs give equal bytes."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import torch

from lowdim.data.classification import Dataset, find
from lowdim.models.structure import selection
from lowdim.train.compare import measure
from lowdim.train.compare.costs import cost
from lowdim.train.compare.member import Member, Role, steps_of, takes_classifier
from lowdim.train.compare.recipe import TrainingRecipe
from lowdim.train.compare.told import Told

FILE, SCHEMA = "training.json", 1


def record(member: Member) -> dict[str, Any]:
    """Return the results of a network, measured once on the test examples."""
    recipe, data = member.recipe, member.data
    outcome, test = measure.test(member.net, data.test, recipe.seed)
    found: dict[str, Any] = {**test, **recipe.objective.examine(member.net, *data.test, recipe.seed)}
    if member.told.test is not None:
        found["groups"] = measure.by_group(outcome.hits, member.told.test.groups)
        found["worst_group"] = measure.worst(found["groups"])
    parameters = member.settings.parameters(member.data)
    layers = _layers(member)
    return {
        "seconds": member.seconds,
        "losses": outcome.losses,
        "hits": outcome.hits,
        "facts": {
            "net": member.settings.model_dump(mode="json"),
            "parameters": parameters,
            "kept": parameters - sum(layer["size"] - layer["kept"] for layer in layers),
            "sparsity": None if member.sparsity is None else member.sparsity.sparsity(),
            "explored": None if member.sparsity is None else member.sparsity.explored(),
            "masks": None if member.sparsity is None else member.sparsity.masks.hash(),
            "layers": layers,
            "dense": _dense(member),
            "curve": member.curve,
            "updates": [] if member.sparsity is None else member.sparsity.history,
            "test": found,
            "costs": cost(member),
        },
    }


def _layers(member: Member) -> list[dict[str, Any]]:
    """Return every sparse weight with what it keeps."""
    if member.sparsity is None:
        return []
    masks = member.sparsity.masks
    return [
        {
            "name": name,
            "shape": list(masks.shape(name)),
            "size": masks[name].numel(),
            "initial": member.initial[name],
            "kept": masks.kept(name),
            "explored": member.sparsity.explored(name),
        }
        for name in masks
    ]


def _dense(member: Member) -> list[dict[str, Any]]:
    """Return the weights that could be sparse and are not, each with the reason."""
    if member.sparsity is None:
        return []
    recipe = member.recipe
    net = member.settings.build(member.data, recipe.seed)  # the one in training may have no dense weights left
    found = selection.weights(net, recipe.include or None, recipe.exclude or None, classifier=takes_classifier(recipe))
    return [
        {"name": weight.name, "size": weight.parameter.numel(), "reason": weight.dense}
        for weight in found
        if weight.dense
    ]


def early(member: Member) -> dict[str, Any]:
    """Return what a first network found: the training samples that it gets wrong, bool [samples], and what it cost."""
    wrong = ~measure.answer(member.net, member.data.train).hits
    facts = {"epochs": member.recipe.epochs, "wrong": int(wrong.sum()), "samples": len(wrong), "costs": cost(member)}
    if member.told.train is not None:
        against = wrong & member.told.train.conflicting
        facts["wrong_and_conflicting"] = int(against.sum())
        facts["conflicting"] = int(member.told.train.conflicting.sum())
    return {"seconds": member.seconds, "wrong": wrong, "facts": facts}


def gather(
    recipe: TrainingRecipe,
    data: Dataset,
    finished: Mapping[Role, Mapping[str, Any]],
    told: Told,
    first: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Return the contents of ``training.json``."""
    members = {role: dict(done["facts"]) for role, done in finished.items()}
    thirds = measure.by_difficulty(
        {str(role): done["losses"] for role, done in finished.items()},
        {str(role): done["hits"] for role, done in finished.items()},
    )
    for role, facts in members.items():
        facts["test"] = {**facts["test"], "by_difficulty": thirds[role]}
    steps = steps_of(recipe, data)
    return {
        "schema": SCHEMA,
        "lowdim": metadata.version("lowdim"),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "recipe": recipe.to_dict(),
        "data": {
            "name": data.name,
            "kind": data.kind,
            "about": find(recipe.data.name).about,
            "train": len(data.train.y),
            "validation": len(data.validation.y),
            "test": len(data.test.y),
            "classes": len(data.classes),
            "sha256": data.fingerprint(),
            **told.facts(),
        },
        "steps": {
            "per_epoch": steps[0] if len(set(steps)) == 1 else steps,
            "total": sum(steps),
            **({"alike": False} if recipe.sampler.listens else {}),
        },
        "execution": recipe.executor,
        "members": members,
        **({} if first is None else {"early": first["facts"]}),
    }

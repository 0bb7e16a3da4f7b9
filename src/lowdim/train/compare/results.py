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
from lowdim.train.compare.member import Member, Role, steps_per_epoch, takes_classifier
from lowdim.train.compare.recipe import TrainingRecipe

FILE, SCHEMA = "training.json", 1


def record(member: Member) -> dict[str, Any]:
    """Return the results of a network, measured once on the test examples."""
    outcome, test = measure.test(member.net, member.data.test, member.recipe.seed)
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
            "test": test,
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


def gather(recipe: TrainingRecipe, data: Dataset, finished: Mapping[Role, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the contents of ``training.json``."""
    members = {role: dict(done["facts"]) for role, done in finished.items()}
    thirds = measure.by_difficulty(
        {str(role): done["losses"] for role, done in finished.items()},
        {str(role): done["hits"] for role, done in finished.items()},
    )
    for role, facts in members.items():
        facts["test"] = {**facts["test"], "by_difficulty": thirds[role]}
    steps = steps_per_epoch(recipe, data)
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
        },
        "steps": {"per_epoch": steps, "total": steps * recipe.epochs},
        "execution": recipe.executor,
        "members": members,
    }

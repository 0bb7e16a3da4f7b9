"""``lowdim plan-training``: what training a model holds in memory, optimizer by optimizer."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from lowdim.cli.checks import names
from lowdim.cli.guard import guarded
from lowdim.cli.options import Debug, Json, Model, Revision, Trust
from lowdim.cli.screen import show, table
from lowdim.core import registry
from lowdim.core.errors import LowdimError, RecipeError

DTYPES = ("float32", "bfloat16")


@guarded()
def plan_training(
    model: Model,
    optimizer: Annotated[
        str, typer.Option(metavar="NAME,...", help="Optimizers that lowdim methods lists; all if not given.")
    ] = "",
    rank: Annotated[
        int | None, typer.Option(min=1, help="Directions of those that project; a quarter of the smallest matrix.")
    ] = None,
    layerwise: Annotated[bool, typer.Option("--layerwise", help="Of those that can: one gradient at a time.")] = False,
    batch: Annotated[int, typer.Option(min=1, help="Sequences computed at once.")] = 1,
    length: Annotated[int, typer.Option(min=2, help="Tokens of a sequence.")] = 256,
    dtype: Annotated[str, typer.Option(metavar="|".join(DTYPES), help="Type of weights and gradients.")] = "float32",
    revision: Revision = None,
    trust_remote_code: Trust = False,
    json_file: Json = None,
    debug: Debug = False,
) -> None:
    """Count the memory of training a model: weights, gradients, optimizer state, activations; nothing is loaded.

    Only the model's config is read. The moments of a step (products, a decomposition) are not in it.
    """
    if dtype not in DTYPES:
        raise RecipeError(f"--dtype is {' or '.join(DTYPES)}; got {dtype!r}.")
    entries = [registry.find("optimizer", name) for name in names(optimizer) or registry.names("optimizer")]
    import torch

    from lowdim.models.disk.source import config_directory
    from lowdim.models.walk.skeleton import empty_model
    from lowdim.train.optimizers.base import matrices
    from lowdim.train.optimizers.plan import activation_bytes
    from lowdim.train.optimizers.plan import plan_training as plan

    place = config_directory(model, revision, trust_remote_code)
    empty = empty_model(place, getattr(torch, dtype), trust_remote_code)
    kept = activation_bytes(empty, batch, length)
    given = {"rank": rank or max(1, min(min(p.shape) for p in matrices(empty)) // 4), "layerwise": layerwise}
    found = {}
    for entry in entries:
        fitting = {key: value for key, value in given.items() if key in entry.settings()}
        try:
            found[entry.name] = plan(empty, entry.load()(**fitting), kept)
        except LowdimError as error:
            if optimizer:
                raise
            show(f"{entry.name} is left out: {error}")
    heads = ("optimizer", "weights", "gradients", "state", "activations", "total")
    rows = [
        (name, *(f"{size / 1e9:.3f}" for size in (m.weights, m.gradients, m.state, m.activations, m.total)))
        for name, m in found.items()
    ]
    size = sum(p.numel() for p in empty.parameters())
    show(f"{size / 1e6:,.1f} million weights, {dtype}, {batch} x {length} tokens, rank {given['rank']}; GB:")
    table(heads, rows, 1)
    if json_file is not None:
        plain = {
            name: {"weights": m.weights, "gradients": m.gradients, "state": m.state, "activations": m.activations}
            for name, m in found.items()
        }
        content = {"parameters": size, "dtype": dtype, "batch": batch, "length": length, **given, "bytes": plain}
        json_file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

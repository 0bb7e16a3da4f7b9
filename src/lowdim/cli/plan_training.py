"""``lowdim plan-training``: what training a model holds in memory, method by method."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Annotated, Any

import typer

from lowdim.cli.checks import names
from lowdim.cli.guard import guarded
from lowdim.cli.options import Debug, Json, Model, Revision, Trust
from lowdim.cli.screen import show, table
from lowdim.core.errors import LowdimError, RecipeError

DTYPES = ("float32", "bfloat16")
PARTS, FITS = ("weights", "gradients", "state", "masks", "activations", "peak"), ("batch", "model")


@guarded()
def plan_training(
    model: Model,
    optimizer: Annotated[
        str,
        typer.Option(
            metavar="NAME,...",
            help="Optimizers, samplings or 2:4 rules that lowdim methods lists, lora, factors; all if not given.",
        ),
    ] = "",
    rank: Annotated[
        int | None, typer.Option(min=1, help="Directions of those that have some; a quarter of the smallest matrix.")
    ] = None,
    layerwise: Annotated[bool, typer.Option("--layerwise", help="Of those that can: one gradient at a time.")] = False,
    batch: Annotated[int, typer.Option(min=1, help="Sequences computed at once.")] = 1,
    length: Annotated[int, typer.Option(min=2, help="Tokens of a sequence.")] = 256,
    dtype: Annotated[str, typer.Option(metavar="|".join(DTYPES), help="Type of weights and gradients.")] = "float32",
    memory: Annotated[
        float | None,
        typer.Option(min=0.001, help="GB: tell the largest batch, and the largest of our models, that fit."),
    ] = None,
    revision: Revision = None,
    trust_remote_code: Trust = False,
    json_file: Json = None,
    debug: Debug = False,
) -> None:
    """Count the memory of training a model (or of a size of ours, such as 130m), method by method; nothing is loaded.

    Only the model's config is read. The peak is the worst moment of a pass, beside weights and state. What an update
    needs for a moment is not in it, nor what the allocator of a process keeps: allow a seventh more.
    """
    if dtype not in DTYPES:
        raise RecipeError(f"--dtype is {' or '.join(DTYPES)}; got {dtype!r}.")
    import torch

    from lowdim.models.disk.source import config_directory
    from lowdim.models.walk.skeleton import empty_model
    from lowdim.train.optimizers.plan import Passes, way, ways
    from lowdim.train.pretrain.configs import SIZES, config

    place = config(model, None, length) if model in SIZES else config_directory(model, revision, trust_remote_code)
    passes, found, room = Passes(length), dict[str, dict[str, Any]](), int(1e9 * (memory or 0))
    size = sum(p.numel() for p in empty_model(place, getattr(torch, dtype), trust_remote_code).parameters())

    def planned(name: str, what: Any) -> dict[str, Any]:
        made = way(name, empty_model(what, getattr(torch, dtype), trust_remote_code), rank, layerwise)
        held = made.held()
        base = held.weights + held.state + held.masks
        told: dict[str, Any] = {part: getattr(held, part) for part in PARTS[:4]}
        if what is place or base + held.gradients <= room:
            one = passes.of(made, batch)
            told |= {"activations": one.kept, "peak": base + one.most}
        if memory and what is place:
            told["batch"] = passes.largest(made, room - base)
            told["model"] = next((size for size in reversed(SIZES) if fits(name, size)), None)
        return told

    def fits(name: str, size: str) -> bool:
        with suppress(LowdimError):
            return bool(planned(name, config(size, None, length)).get("peak", room + 1) <= room)
        return False  # too small for the rank, say

    for name in names(optimizer) or ways():
        try:
            found[name] = planned(name, place)
        except LowdimError as error:
            if optimizer:
                raise
            show(f"{name} is left out: {error}")
    if not found:
        raise LowdimError(f"nothing trains {model}: see above. Take another model.")
    show(f"{size / 1e6:,.1f} million weights, {dtype}, {batch} x {length} tokens, GB:")
    rows = [
        (name, *(f"{each[key] / 1e9:.3f}" for key in PARTS), *(each[key] for key in FITS if memory))
        for name, each in found.items()
    ]
    table(("method", *PARTS, *(FITS if memory else ())), rows, 1)
    if json_file is not None:
        content = {
            "parameters": size,
            "dtype": dtype,
            "batch": batch,
            "length": length,
            "rank": rank,
            "layerwise": layerwise,
            "memory": memory,
            "methods": found,
        }
        json_file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

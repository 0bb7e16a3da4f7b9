"""``lowdim search-decay``: the decay of what is pruned, for 2:4 training from scratch, by how often masks flip."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from lowdim.cli.checks import numbers
from lowdim.cli.guard import FAILURE, guarded
from lowdim.cli.options import Debug, Json, Quiet, RecipeFile, Trust
from lowdim.cli.progress import terminal
from lowdim.cli.screen import is_first, show, table


@guarded()
def search_decay(
    recipe: RecipeFile = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any key of the recipe of lowdim pretrain."),
    ] = None,
    decays: Annotated[
        str, typer.Option(metavar="X,...", help="To try; those of the paper's models if not given.")
    ] = "",
    steps: Annotated[int | None, typer.Option(min=1, help="Of each warm-up; those of the schedule.")] = None,
    least: Annotated[float, typer.Option(help="Flips over those of a dense warm-up, at least.")] = 0.6,
    most: Annotated[float, typer.Option(help="The same, at most.")] = 0.95,
    trust_remote_code: Trust = False,
    json_file: Json = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Find from-scratch.decay: train short warm-ups, and take the decay whose masks flip a little less than dense ones.

    The recipe is that of lowdim pretrain. Nothing is written but the JSON file.
    """
    from lowdim.train.pretrain.recipe import Pretraining

    checked = Pretraining.assemble(recipe, {"trust_remote_code": trust_remote_code or None}, assignments or [])
    given = numbers("--decays", decays)
    from lowdim.train.pretrain import search

    found = search.search_decay(
        checked, given or search.DECAYS, steps=steps, least=least, most=most, progress=terminal(quiet)
    )
    rows = [("dense", f"{found.flip_rate:.5f}", "1", f"{found.loss:.4f}")]
    rows += [(f"{t.decay:g}", f"{t.flip_rate:.5f}", f"{t.ratio:.3f}", f"{t.loss:.4f}") for t in found.tried]
    table(("decay", "flip rate", "over dense", "loss"), rows, 1)
    if json_file is not None and is_first():
        json_file.write_text(json.dumps(found.to_dict(), indent=2) + "\n", encoding="utf-8")
    show(found.sentence())
    if found.decay is None:
        raise typer.Exit(FAILURE)

"""``lowdim compose``: prune, round, recover, edit and unlearn one model in a row, and see what survives."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from lowdim.cli.checks import check_text
from lowdim.cli.guard import guarded
from lowdim.cli.options import Debug, Json, Model, Quiet, RecipeFile, Resume, Seed, Trust
from lowdim.cli.progress import terminal
from lowdim.cli.screen import say, show, table
from lowdim.evaluate.present import number


@guarded(after_interrupt="Finished stages are safe: run the same command with --resume to go on.")
def compose(
    model: Model,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Where the results go.")],
    stages: Annotated[
        str | None, typer.Option(metavar="NAME,...", help="Stages in order, with their defaults: prune,edit.")
    ] = None,
    orders: Annotated[
        str | None, typer.Option(metavar="given|both", help="Also the order in which two stages change places.")
    ] = None,
    verify: Annotated[
        str | None, typer.Option(metavar="impose|refuse", help="What happens to what a stage breaks.")
    ] = None,
    text: Annotated[
        str | None, typer.Option(metavar="builtin|none|FILE", help="Text to measure perplexity on.")
    ] = None,
    windows: Annotated[int | None, typer.Option(help="At most so many windows.")] = None,
    tasks: Annotated[str | None, typer.Option(metavar="NAME,...", help="Zero-shot tasks, or .jsonl files.")] = None,
    limit: Annotated[int | None, typer.Option(help="At most so many questions per task.")] = None,
    seed: Seed = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any key of the recipe, e.g. pair=[1,3].")
    ] = None,
    recipe: RecipeFile = None,
    trust_remote_code: Trust = False,
    keep: Annotated[bool, typer.Option("--keep", help="Leave in OUT what each stage made.")] = False,
    resume: Resume = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check all, time the model, print the plan and stop.")
    ] = False,
    json_file: Json = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Compose interventions: after each stage, what the ones before it promised is read back and put right.

    Flags override the fields of --recipe, and --set overrides both.
    """
    flags = {
        "stages": stages,
        "orders": orders,
        "verify": verify,
        "evaluation.windows": windows,
        "evaluation.tasks": tasks,
        "evaluation.limit": limit,
        "seed": seed,
        "trust_remote_code": trust_remote_code or None,
    }
    given = list(assignments or [])
    if text is not None:
        given.append(f"evaluation.text={'null' if text == 'none' else text}")
    from lowdim.pipeline.compose.recipe import Composition, order_of

    checked = Composition.assemble(recipe, flags, given)
    check_text("evaluation.text", checked.evaluation.text)
    for stage in checked.stages:
        stage.facts()
    from lowdim.pipeline.compose import api

    if dry_run:
        show("\n".join(f"{name}: {order_of(chain) or 'no stage'}" for name, chain in checked.chains().items()))
        show(api.plan(model, checked, out=out, progress=terminal(quiet)))
        return
    from lowdim.report.build import build

    announce = (lambda _: None) if quiet else say
    found = api.compose(model, checked, out=out, keep=keep, resume=resume, progress=terminal(quiet), announce=announce)
    if json_file is not None:
        json_file.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    _print(found)
    for name in found["orders"]:
        show(f"Model:  {out / name}")
    show(f"Report: {build(out)}")


def _print(found: Mapping[str, Any]) -> None:
    names, both = list(found["orders"]), len(found["orders"]) > 1
    errors = ("order-free error", "order sensitivity") if both else ()
    rows = [
        (
            row["title"],
            number(row["first"], 3),
            *(number(row["orders"][name], 3) for name in names),
            *((_unit(row["error"], row["unit"]), _unit(row["sensitivity"], row["unit"])) if both else ()),
        )
        for row in found["table"]
    ]
    heads = [found["orders"][name] or "no stage" for name in names]
    table(("measure", "before", *heads, *errors), rows, 1)
    for name in names:
        for stage in found["stages"][name]:
            for breach in stage["broken"]:
                show(f"{found['orders'][name]}: after {stage['stage']} {breach['sentence']}: put right.")
    show(found["sentence"])


def _unit(value: float | None, unit: str) -> str:
    return number(value, 3) + (f" {unit}" if unit and value is not None else "")

"""``lowdim distill-draft``: a small model trained to propose what a large one accepts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lowdim.cli.checks import check_text, names
from lowdim.cli.guard import guarded
from lowdim.cli.options import Debug, Overwrite, Quiet, RecipeFile, Resume, Seed, Trust
from lowdim.cli.progress import terminal
from lowdim.cli.screen import say, show, table
from lowdim.core import registry
from lowdim.core.errors import RecipeError

METHODS = registry.names("drafter")
ALL = "all"


@guarded(after_interrupt="What is finished is safe: run the same command with --resume to go on.")
def distill_draft(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="TARGET", help="The model to draft for: a directory, a hub id or builtin:NAME, the default."
        ),
    ] = None,
    draft: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL|target:N|SIZE|FILE",
            help="A model, the target with N of its blocks, a size of lowdim pretrain, or a config.json.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Where the draft goes.")] = None,
    method: Annotated[
        str | None,
        typer.Option(
            metavar="|".join([*METHODS, ALL]), help="What for; the first of several is written to DIR itself."
        ),
    ] = None,
    text: Annotated[str | None, typer.Option(metavar="builtin|FILE", help="Text to train on.")] = None,
    steps: Annotated[
        int | None, typer.Option(help="Steps of every draft; one pass over the text if not given.")
    ] = None,
    tune: Annotated[
        int | None, typer.Option(help="Steps of fine-tuning the target on the text first; 0 for none.")
    ] = None,
    measure: Annotated[
        str | None,
        typer.Option(metavar="NAME,...", help="Texts and tasks that acceptance is measured on: held, builtin, sciq."),
    ] = None,
    seed: Seed = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any key of the recipe, e.g. drafter.keep=0.5."),
    ] = None,
    recipe: RecipeFile = None,
    trust_remote_code: Trust = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Time a step, print the plan and stop.")] = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train a draft model for speculative decoding, and measure how much of it the target accepts.

    Flags override the fields of --recipe, and --set overrides both.
    """
    from lowdim.train.draft.recipe import Drafting

    chosen = METHODS if method == ALL else names(method or "")
    flags: dict[str, Any] = {
        "target": target,
        "draft": draft,
        "drafter": chosen[0] if chosen else None,
        "rivals": chosen[1:] or None,
        "data.source": text,
        "steps": steps,
        "tune.steps": tune,
        "acceptance.texts": None if measure is None else names(measure),
        "seed": seed,
        "trust_remote_code": trust_remote_code or None,
    }
    if draft is None and recipe is None:
        raise RecipeError("--draft is required: what the draft begins as, such as target:6, a size or a model.")
    checked = Drafting.assemble(recipe, flags, assignments or [])
    for source in checked.data.source:
        check_text("data.source", source)
    if isinstance(checked.data.validation, str):
        check_text("data.validation", checked.data.validation)
    if out is None and not dry_run:
        raise RecipeError("--out is required: the directory that the draft goes to. Or take --dry-run for the plan.")
    from lowdim.train.draft import api

    progress = terminal(quiet)
    if dry_run or out is None:
        show(api.plan(checked, progress).render())
        return
    announce = (lambda _: None) if quiet else say
    result = api.distill_draft(
        checked, out=out, resume=resume, overwrite=overwrite, progress=progress, announce=announce
    )
    _print(result.measured, checked.acceptance.drafted)
    show(f"Output: {out}")


def _print(measured: dict[str, dict[str, Any]], drafted: int) -> None:
    rows = []
    for text in next(iter(measured.values())):
        for method, found in measured.items():
            one, simulated = found[text], found[text].get("simulated")
            shown = [f"{simulated['acceptance']:.1%}", f"{simulated['efficiency']:.2f}"] if simulated else ["", ""]
            rows.append((text, method, f"{one['acceptance']:.1%}", f"{one['agreement']:.1%}", *shown))
    heads = ("text", "draft", "acceptance", "same token", "simulated", f"tokens a call, {drafted} drafted")
    table(heads, rows, 2)

"""``lowdim recover``: a pruned model trained to be like its dense teacher again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lowdim.cli.checks import check_text
from lowdim.cli.guard import guarded
from lowdim.cli.options import Debug, Model, Overwrite, Quiet, RecipeFile, Resume, Revision, Seed, Storage, Trust
from lowdim.cli.progress import terminal
from lowdim.cli.prune import speed_of
from lowdim.cli.screen import is_first, say, show
from lowdim.cli.summary import finish
from lowdim.core import registry
from lowdim.core.errors import RecipeError

MOVING = [name for name in registry.names("masks") if name != "fixed"]


@guarded(after_interrupt="What is finished is safe: run the same command with --resume to go on.")
def recover(
    model: Model,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Where the recovered model goes.")],
    teacher: Annotated[
        str | None,
        typer.Option(metavar="DENSE", help="The dense model; if not given, the one that MODEL was made from."),
    ] = None,
    minutes: Annotated[float | None, typer.Option(help="Minutes of training on this machine.")] = None,
    stage: Annotated[
        str | None, typer.Option(metavar="blocks|distill|both", help="Block by block, end to end, or both in turn.")
    ] = None,
    mask: Annotated[
        str | None, typer.Option(metavar="fixed|adaptive", help="Whether zeros stay where they are, or move.")
    ] = None,
    method: Annotated[str | None, typer.Option(metavar="|".join(MOVING), help="How adaptive masks move.")] = None,
    quantize: Annotated[
        str | None,
        typer.Option(metavar="none|int8|int4|int3", help="Train through the grid that weights are stored on."),
    ] = None,
    calibration: Annotated[
        str | None, typer.Option(metavar="builtin|FILE", help="Text, JSONL or safetensors to train on.")
    ] = None,
    samples: Annotated[int | None, typer.Option(help="Sequences of text.")] = None,
    context: Annotated[int | None, typer.Option(help="Tokens per sequence.")] = None,
    seed: Seed = None,
    storage: Storage = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any key of the recipe, e.g. distill.temperature=2."),
    ] = None,
    recipe: RecipeFile = None,
    revision: Revision = None,
    trust_remote_code: Trust = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Time a step, print the plan and stop.")] = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Recover a pruned model: train what pruning kept, block by block and end to end; zeros stay zeros.

    Flags override the fields of --recipe, and --set overrides both.
    """
    flags = {
        "teacher": teacher,
        "minutes": minutes,
        "stage": stage,
        "masks": _masks(mask, method),
        "quantize": quantize,
        "calibration.source": calibration,
        "calibration.samples": samples,
        "calibration.context": context,
        "seed": seed,
        "storage": storage,
        "trust_remote_code": trust_remote_code or None,
    }
    from lowdim.pipeline.recover.recipe import Recovery

    checked = Recovery.assemble(recipe, flags, assignments or [])
    check_text("calibration.source", checked.calibration.source)
    check_text("evaluation.text", checked.evaluation.text)
    from lowdim.pipeline.recover import api

    if dry_run:
        show(api.plan(model, checked, revision=revision).render())
        return
    api.recover(
        model,
        checked,
        out=out,
        revision=revision,
        resume=resume,
        overwrite=overwrite,
        progress=terminal(quiet),
        announce=(lambda _: None) if quiet else say,
        speed=speed_of(checked),
    )
    if is_first():
        finish(out)


def _masks(mask: str | None, method: str | None) -> str | None:
    """Return the recipe's word for two flags: whether masks move, and how."""
    if mask not in (None, "fixed", "adaptive"):
        raise RecipeError(f"--mask must be fixed or adaptive, got {mask!r}.")
    if mask == "fixed" and method is not None:
        raise RecipeError("--method says how masks move, and --mask fixed keeps them. Leave one of them out.")
    return method or (MOVING[0] if mask == "adaptive" else mask)

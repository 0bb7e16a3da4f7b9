"""``lowdim pretrain``: a language model trained on text, from nothing or on, from one recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lowdim.cli.checks import check_text
from lowdim.cli.guard import FAILURE, guarded
from lowdim.cli.options import Debug, Overwrite, Quiet, RecipeFile, Resume, Trust
from lowdim.cli.progress import terminal
from lowdim.cli.screen import is_first, say, show, table
from lowdim.core.errors import RecipeError


@guarded(after_interrupt="What is saved is safe: run the same command with --resume to go on.")
def pretrain(
    recipe: RecipeFile = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Where the model goes.")] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any key of the recipe, e.g. optimizer.lr=3e-4."),
    ] = None,
    trust_remote_code: Trust = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Time a step, print the plan and stop.")] = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train a causal language model on text, and write a directory that stock Transformers loads.

    --set overrides the fields of --recipe. A line for every step goes to DIR.log.jsonl, and DIR.html shows the curves.
    Under torchrun the processes share every step.
    """
    from lowdim.train.pretrain.recipe import Pretraining

    checked = Pretraining.assemble(recipe, {"trust_remote_code": trust_remote_code or None}, assignments or [])
    for source in checked.data.source:
        check_text("data.source", source)
    if isinstance(checked.data.validation, str):
        check_text("data.validation", checked.data.validation)
    if out is None and not dry_run:
        raise RecipeError("--out is required: the directory that the model goes to. Or take --dry-run for the plan.")
    from lowdim.train.pretrain import api

    progress = terminal(quiet)
    if dry_run or out is None:
        show(api.plan(checked, progress).render())
        return
    result = api.pretrain(
        checked,
        out=out,
        resume=resume,
        overwrite=overwrite,
        progress=progress,
        announce=(lambda _: None) if quiet else say,
    )
    _print(result.facts, result.run)
    show(f"Output: {out}")
    if is_first():
        from lowdim.report.build import build

        show(f"Report: {build(out)}")
    if result.complaint:
        say(f"Error: {result.complaint}")
        raise typer.Exit(FAILURE)


def _print(facts: dict[str, Any], run: dict[str, Any]) -> None:
    rows = [
        ("validation loss, nats a token", f"{facts['validation']['loss']:.4f}"),
        ("perplexity", f"{facts['validation']['perplexity']:.2f}"),
        ("steps", f"{facts['steps']:,}"),
        ("tokens", f"{facts['tokens']:,}"),
    ]
    if run.get("tokens_per_s"):
        rows += [
            ("tokens a second", f"{run['tokens_per_s']:,.0f}"),
            ("of the matmul peak measured here", f"{run['mfu']:.0%} of {run['peak_flops_per_s'] / 1e9:,.0f} GFLOP/s"),
            ("peak memory", f"{max(run['peak_bytes']) / 2**20:,.0f} MB"),
        ]
    table(("", ""), rows, 1)

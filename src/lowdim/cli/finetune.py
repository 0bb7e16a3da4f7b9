"""``lowdim finetune``: a model trained on answers or preferences, all of it or a few weights; zeros stay zeros."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lowdim.cli.checks import check_text
from lowdim.cli.guard import FAILURE, guarded
from lowdim.cli.options import Debug, Model, Overwrite, Quiet, RecipeFile, Resume, Seed, Trust
from lowdim.cli.progress import terminal
from lowdim.cli.screen import say, show, table
from lowdim.core import registry

METHODS = "lift|full|lora|dora|random|magnitude|smallest"
OBJECTIVES = "|".join(["answers", *registry.names("preference")])


@guarded(after_interrupt="What is saved is safe: run the same command with --resume to go on.")
def finetune(
    model: Model,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Where the fine-tuned model goes.")],
    data: Annotated[
        list[str] | None,
        typer.Option("--data", metavar="FILE", help="Rows to train on: JSON lines, or builtin:NAME; several times."),
    ] = None,
    method: Annotated[
        str | None, typer.Option(metavar=METHODS, help="What is trained: chosen weights, all, or an adapter.")
    ] = None,
    objective: Annotated[
        str | None, typer.Option(metavar=OBJECTIVES, help="Answers to predict, or pairs to prefer among.")
    ] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the rows; one if not given.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the optimizer, in the place of passes.")] = None,
    seed: Seed = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any key of the recipe, e.g. optimizer.lr=1e-4."),
    ] = None,
    recipe: RecipeFile = None,
    trust_remote_code: Trust = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Time a step, print the plan and stop.")] = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Fine-tune a model, sparse or dense, on answers or on preferences; the zeros of a pruned one stay.

    Flags override the fields of --recipe, and --set overrides both. A line for every step goes to OUT.log.jsonl. Under
    torchrun the processes share every step.
    """
    from lowdim.train.finetune.recipe import Finetuning

    flags: dict[str, Any] = {
        "model": model,
        "method": method,
        "objective": objective,
        "data.source": tuple(data) if data else None,
        "epochs": epochs,
        "steps": steps,
        "seed": seed,
        "trust_remote_code": trust_remote_code or None,
    }
    checked = Finetuning.assemble(recipe, flags, assignments or [])
    for source in checked.data.source:
        check_text("--data", source)
    if isinstance(checked.data.validation, str):
        check_text("data.validation", checked.data.validation)
    from lowdim.train.finetune import api

    progress = terminal(quiet)
    if dry_run:
        show(api.plan(checked, progress).render())
        return
    result = api.finetune(
        checked,
        out=out,
        resume=resume,
        overwrite=overwrite,
        progress=progress,
        announce=(lambda _: None) if quiet else say,
    )
    _print(result.facts, result.run)
    for line in _read_back(result.facts):
        show(line)
    show(f"Output: {out}")
    if result.complaint:
        say(f"Error: {result.complaint}")
        raise typer.Exit(FAILURE)


_SAID = {"loss": "loss", "accuracy": "preference accuracy, ties apart", "accuracy_with_ties": "the same with ties"}


def _print(facts: dict[str, Any], run: dict[str, Any]) -> None:
    before, after = facts["before"], facts["validation"]
    rows = [(said, f"{before[key]:.4f}", f"{after[key]:.4f}") for key, said in _SAID.items() if key in after]
    table((f"on {after['rows']:,} rows held out", "before", "after"), rows, 1)
    more = [("steps", f"{facts['steps']:,}")]
    if run.get("seconds_per_step"):
        more += [
            ("seconds a step", f"{run['seconds_per_step']:.3f}"),
            ("optimizer's state", f"{run['state_bytes'] / 2**20:,.1f} MB"),
            ("peak memory", f"{max(run['peak_bytes']) / 2**20:,.0f} MB"),
        ]
    table(("", ""), more, 1)


def _read_back(facts: dict[str, Any]) -> list[str]:
    """Return what was found when the output was read again and compared with the model."""
    found = facts["changes"]
    changed, tensors = sum(found["changed"].values()), len(found["changed"])
    said = [
        f"Read back: {changed:,} of {found['weights']:,} weights differ, in {tensors} of {found['tensors']} tensors; "
        "all others are equal to the bit."
    ]
    if found["pruned"]:
        kept = found["zeros"] - found["filled"]
        said.append(f"Masks: {kept:,} of {found['zeros']:,} zeros in {found['pruned']} pruned matrices are zero still.")
    if found["emptied"]:
        said.append(f"{found['emptied']:,} kept weights have become zero.")
    if found["missing"]:
        said.append(f"On one side alone: {', '.join(found['missing'][:3])}.")
    return said

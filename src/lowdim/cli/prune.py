"""``lowdim prune``: flags over a recipe, the recipe over nothing at all."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lowdim.cli.checks import check_text
from lowdim.cli.guard import guarded
from lowdim.cli.options import Debug, Model, Overwrite, Quiet, RecipeFile, Resume, Revision, Seed, Storage, Trust
from lowdim.cli.progress import terminal
from lowdim.cli.screen import is_first, say, show
from lowdim.cli.summary import finish
from lowdim.core import registry
from lowdim.prune.presets import METHODS

if TYPE_CHECKING:
    from lowdim.pipeline.recover.recipe import Recovery
    from lowdim.prune.recipe import Recipe
    from lowdim.prune.speed import MeasureSpeed


def _choice(flag: str, kind: str, help: str) -> object:
    return typer.Option(flag, metavar="|".join(registry.names(kind)), help=help)


@guarded(after_interrupt="Finished blocks are safe: run the same command with --resume to go on.")
def prune(
    model: Model,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Where the sparse model goes.")],
    sparsity: Annotated[float | None, typer.Option(help="Share of zeros in the pruned layers, in [0, 1).")] = None,
    method: Annotated[
        str | None, typer.Option(metavar="|".join(METHODS), help="A score and its repair in one word.")
    ] = None,
    repair: Annotated[str | None, _choice("--repair", "repair", "What happens to the kept weights.")] = None,
    allocation: Annotated[
        str | None, _choice("--allocation", "allocation", "How much of the budget each layer gets.")
    ] = None,
    pattern: Annotated[
        str | None,
        typer.Option(metavar="unstructured|N:M|RxC|structured", help="Which masks are legal: N:M keeps N of M."),
    ] = None,
    refine: Annotated[str | None, _choice("--refine", "refine", "How the finished mask is moved.")] = None,
    quantize: Annotated[
        str | None,
        typer.Option(metavar="none|int8|int4", help="Round the kept weights as well; stored packed."),
    ] = None,
    true_sequential: Annotated[
        bool,
        typer.Option("--true-sequential", help="Take statistics anew for each group of layers in a block."),
    ] = False,
    calibration: Annotated[
        str | None,
        typer.Option(metavar="builtin|FILE", help="Text, JSONL or safetensors to take statistics on."),
    ] = None,
    samples: Annotated[int | None, typer.Option(help="Calibration sequences.")] = None,
    context: Annotated[int | None, typer.Option(help="Tokens per calibration sequence.")] = None,
    seed: Seed = None,
    storage: Storage = None,
    dtype: Annotated[
        str | None, typer.Option(metavar="auto|float32|bfloat16|float16", help="Type of the stored weights.")
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any key of the recipe, e.g. allocation.m=7."),
    ] = None,
    recipe: RecipeFile = None,
    revision: Revision = None,
    trust_remote_code: Trust = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Prune a model: take statistics, share out the budget, mask, repair, measure, write.

    Flags override the fields of --recipe, and --set overrides both.
    """
    flags = {
        "method": method,
        "repair": repair,
        "sparsity": sparsity,
        "allocation": allocation,
        "pattern": pattern,
        "refine": refine,
        "quantize": quantize,
        "sequential": "true" if true_sequential else None,
        "calibration.source": calibration,
        "calibration.samples": samples,
        "calibration.context": context,
        "seed": seed,
        "storage": storage,
        "dtype": dtype,
        "trust_remote_code": trust_remote_code or None,
    }
    checked, recovery = _recipes(recipe, flags, assignments or [])
    check_text("calibration.source", checked.calibration.source)
    check_text("evaluation.text", checked.evaluation.text)
    from lowdim.prune import api

    progress = terminal(quiet)
    if dry_run:
        show(api.plan(model, checked, revision=revision).render())
        if recovery is not None:
            from lowdim.pipeline.recover import chain

            show("\nThen recovery\n" + chain.plan(model, checked, recovery, revision=revision).render())
        return
    if recovery is not None:
        _recovered(
            model, checked, recovery, out=out, revision=revision, resume=resume, overwrite=overwrite, progress=progress
        )
        return
    api.prune(
        model,
        checked,
        out=out,
        revision=revision,
        resume=resume,
        overwrite=overwrite,
        progress=progress,
        speed=speed_of(checked),
    )
    if is_first():
        finish(out)


def _recipes(file: Path | None, flags: Mapping[str, Any], given: list[str]) -> tuple[Recipe, Recovery | None]:
    """Return the recipe, and what comes after it where it has a section ``recover``."""
    from lowdim.core.recipe import read

    if any(text.strip().startswith("recover.") for text in given) or (file and "recover" in read(file)):
        from lowdim.pipeline.recover.chain import split

        return split(file, flags, given)
    from lowdim.prune.recipe import Recipe

    return Recipe.assemble(file, flags, given), None


def _recovered(model: str, recipe: Recipe, recovery: Recovery, *, out: Path, **how: Any) -> None:
    from lowdim.pipeline.recover.chain import prune_and_recover

    check_text("recover.calibration.source", recovery.calibration.source)
    prune_and_recover(model, recipe, recovery, out=out, announce=say, speed=speed_of(recovery), **how)
    if is_first():
        finish(out)


def speed_of(recipe: Recipe | Recovery) -> MeasureSpeed | None:
    """Return what measures the sparse model in this package's own runtime, if anything is to be measured."""
    if not recipe.evaluation.tokens:
        return None
    from lowdim.infer.bench.pair import measure_pair

    return partial(measure_pair, trust_remote_code=recipe.trust_remote_code)

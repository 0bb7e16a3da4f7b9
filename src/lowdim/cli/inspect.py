"""``lowdim inspect``: what a model is like, and what it would lose; its weights are untouched."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lowdim.cli.checks import check_text, check_unused, names, numbers
from lowdim.cli.guard import guarded
from lowdim.cli.options import Bos, Compute, Debug, Json, Model, Quiet, Revision, Trust
from lowdim.cli.progress import terminal
from lowdim.cli.screen import show, table
from lowdim.core.errors import RecipeError
from lowdim.evaluate.present import Table

if TYPE_CHECKING:
    from lowdim.prune.recipe import Recipe

OUTLIERS = "3,5,7,10"


@guarded()
def inspect(
    model: Model,
    calibration: Annotated[
        str, typer.Option(metavar="builtin|none|FILE", help="Text that outliers are measured on.")
    ] = "builtin",
    samples: Annotated[int, typer.Option(help="Calibration sequences.")] = 32,
    context: Annotated[int | None, typer.Option(help="Tokens per sequence or window; 512 if not given.")] = None,
    outliers: Annotated[
        str, typer.Option(metavar="M,...", help="How many times the mean makes an outlier.")
    ] = OUTLIERS,
    alpha: Annotated[bool, typer.Option("--alpha/--no-alpha", help="Exponents of the spectra.")] = True,
    layers: Annotated[bool, typer.Option("--layers", help="Show every layer, not the blocks alone.")] = False,
    essential: Annotated[
        str, typer.Option(metavar="perplexity|TASK", help="Audit: at what sparsity does this score give way?")
    ] = "",
    junk_dna: Annotated[
        str, typer.Option(metavar="TASK,...", help="Audit: do small weights matter more for difficult tasks?")
    ] = "",
    difficulty: Annotated[
        str,
        typer.Option(
            metavar="gap|options|X,...",
            help="Of the --junk-dna tasks: how far from solved, how many choices, or a number for each.",
        ),
    ] = "gap",
    grid: Annotated[
        str, typer.Option(metavar="SPARSITY,...", help="The audits' sparsities; 0.1 to 0.9 if not given.")
    ] = "",
    text: Annotated[str, typer.Option(metavar="builtin|FILE", help="The text of --essential perplexity.")] = "builtin",
    windows: Annotated[int | None, typer.Option(help="At most so many windows of it.")] = None,
    limit: Annotated[int | None, typer.Option(help="At most so many questions per task.")] = None,
    bos: Bos = "tokenizer",
    seed: Annotated[int, typer.Option(help="Of every draw.")] = 0,
    compute: Compute = "auto",
    revision: Revision = None,
    trust_remote_code: Trust = False,
    json_file: Json = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Show sparsity, outliers and spectra per block; or, with --essential or --junk-dna, audit the model.

    The audits drop the smallest weights in memory, measure, and put every bit back.
    """
    from lowdim.evaluate.quality.tasks import PRESETS, expand
    from lowdim.prune.recipe import Recipe

    if essential in PRESETS:
        raise RecipeError(f"--essential takes one score, and {essential!r} stands for several tasks. Name one of them.")
    tasks = [name for name in (essential, *names(junk_dna)) if name not in ("", "perplexity")]
    size = {} if context is None else {"context": context}
    recipe = Recipe(
        sparsity=0.0,
        seed=seed,
        compute=compute,
        trust_remote_code=trust_remote_code,
        calibration={"source": calibration, "samples": samples, **size},
        evaluation={"text": text, "windows": windows, "limit": limit, "tasks": tasks, "bos": bos, **size},
    )
    check_text("--calibration", None if calibration == "none" else calibration)
    check_text("--text", text)
    if essential or junk_dna:
        shown = {
            "--calibration": calibration != "builtin",
            "--samples": samples != 32,
            "--outliers": outliers != OUTLIERS,
        }
        check_unused("in an audit. Ask for it by itself", shown | {"--no-alpha": not alpha, "--layers": layers})
    else:
        asked = {"--grid": bool(grid), "--limit": limit is not None, "--windows": windows is not None}
        asked |= {"--text": text != "builtin", "--difficulty": difficulty != "gap", "--bos": bos != "tokenizer"}
        check_unused("without an audit. Add --essential or --junk-dna", asked)
    points, ms = numbers("--grid", grid), numbers("--outliers", outliers)
    if wrong := [point for point in points if not 0 <= point < 1]:
        raise RecipeError(f"--grid holds sparsities in [0, 1), got {wrong[0]:g}. Write 0.3 for 30%.")
    tags = _difficulty(difficulty, list(expand(names(junk_dna))))
    if essential or junk_dna:
        found = _audit(model, revision, recipe, essential, tags, points, quiet)
    else:
        found = _inspect(model, revision, recipe, ms, alpha, layers, quiet)
    if json_file is not None:
        json_file.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def _difficulty(text: str, tasks: list[str]) -> dict[str, Any]:
    """Return the arguments of the Junk-DNA audit that name its tasks and say how hard each is."""
    if text in ("gap", "options"):
        return {"tasks": tasks, "difficulty": text}
    tags = numbers("--difficulty", text)
    if len(tags) != len(tasks):
        raise RecipeError(
            f"--difficulty takes gap, options, or one number for each of the {len(tasks)} tasks of --junk-dna; "
            f"got {text!r}."
        )
    return {"tasks": tasks, "difficulty": dict(zip(tasks, tags, strict=True))}


def _inspect(
    model: str, revision: str | None, recipe: Recipe, ms: list[float], alpha: bool, layers: bool, quiet: bool
) -> dict[str, Any]:
    from lowdim.evaluate.inspect import inspect as run

    settings = recipe.calibration
    found = run(
        model,
        calibration=None if settings.source == "none" else settings.source,
        ms=ms,
        alpha=alpha,
        samples=settings.samples,
        context=settings.context,
        seed=recipe.seed,
        revision=revision,
        compute=recipe.compute,
        trust_remote_code=recipe.trust_remote_code,
        progress=terminal(quiet),
    )
    show(found.summary())
    for made in found.tables():
        if layers or made.heads[0] != "layer":
            _show(made)
    return found.to_dict()


def _audit(
    model: str,
    revision: str | None,
    recipe: Recipe,
    essential: str,
    junk_dna: dict[str, Any],
    grid: list[float],
    quiet: bool,
) -> dict[str, Any]:
    from lowdim.data.calibration import check_context, positions
    from lowdim.data.windows import windows
    from lowdim.evaluate.audit.essential import perplexity_metric, task_metric
    from lowdim.evaluate.audit.settings import EssentialSparsityAudit, JunkDNAAudit
    from lowdim.models.disk.source import resolve
    from lowdim.models.load import load, need_tokenizer
    from lowdim.prune.measure import CONTEXT, check_tasks

    trusted = recipe.trust_remote_code
    source = resolve(model, revision=revision, trust_remote_code=trusted)
    tokenizer = need_tokenizer(model, source.path, trusted)
    dtype = source.dtype if recipe.compute == "auto" else recipe.compute
    loaded = load(source.path, dtype, trust_remote_code=trusted)
    check_tasks(recipe, tokenizer, loaded.config)
    asked, progress, found = recipe.evaluation, terminal(quiet), dict[str, Any](model=model)
    options: dict[str, Any] = {"seed": recipe.seed} | ({"grid": tuple(grid)} if grid else {})
    if essential:
        if essential == "perplexity":
            text = asked.text or "builtin"
            context = asked.context or min(CONTEXT, positions(loaded.config) or CONTEXT)
            check_context(context, loaded.config)
            metric = perplexity_metric(windows(text, tokenizer, context, limit=asked.windows, bos=asked.bos))
        else:
            metric = task_metric(essential, tokenizer, asked.limit, recipe.seed, asked.bos)
        curve = EssentialSparsityAudit(**options).measure(loaded, metric, progress)
        show(curve.summary())
        _show(curve.table())
        found["essential"] = curve.to_dict()
    if junk_dna["tasks"]:
        options |= {"difficulty": junk_dna["difficulty"], "limit": asked.limit, "bos": asked.bos}
        audit = JunkDNAAudit(**options).measure(loaded, tokenizer, junk_dna["tasks"], progress)
        show(audit.summary())
        _show(audit.table())
        found["junk_dna"] = audit.to_dict()
    return found


def _show(made: Table) -> None:
    show(f"\n{made.title}")
    table(made.heads, made.rows, 1)

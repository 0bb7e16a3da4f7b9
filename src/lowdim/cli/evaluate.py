"""``lowdim evaluate``: perplexity and zero-shot accuracy of one model, with their protocol."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lowdim.cli.checks import check_text, check_unused
from lowdim.cli.guard import guarded
from lowdim.cli.options import Bos, Compute, Debug, Json, Model, Quiet, Revision, Trust
from lowdim.cli.progress import terminal
from lowdim.cli.screen import show, table
from lowdim.core.errors import CheckpointError, RecipeError
from lowdim.core.progress import Progress

if TYPE_CHECKING:
    from lowdim.prune.measure import Measured
    from lowdim.prune.recipe import Recipe


@guarded()
def evaluate(
    model: Model,
    text: Annotated[str, typer.Option(metavar="builtin|none|FILE", help="Text to measure perplexity on.")] = "builtin",
    context: Annotated[int | None, typer.Option(help="Tokens per window; 512 if not given.")] = None,
    windows: Annotated[int | None, typer.Option(help="At most so many windows.")] = None,
    tasks: Annotated[str, typer.Option(metavar="NAME,...", help="Zero-shot tasks, or .jsonl files.")] = "",
    limit: Annotated[int | None, typer.Option(help="At most so many questions per task.")] = None,
    bos: Bos = "tokenizer",
    seed: Annotated[int, typer.Option(help="Which questions a limit draws.")] = 0,
    compute: Compute = "auto",
    revision: Revision = None,
    trust_remote_code: Trust = False,
    json_file: Json = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Measure perplexity and zero-shot accuracy, each with the protocol it depends on."""
    from lowdim.prune.recipe import Recipe

    wanted: dict[str, Any] = {"text": None if text == "none" else text, "windows": windows, "bos": bos}
    wanted |= {"tasks": tasks, "limit": limit} | ({} if context is None else {"context": context})
    recipe = Recipe(sparsity=0.0, compute=compute, seed=seed, evaluation=wanted, trust_remote_code=trust_remote_code)
    check_text("--text", recipe.evaluation.text)
    if text == "none":
        check_unused(
            "without a text. Give --text", {"--context": context is not None, "--windows": windows is not None}
        )
    if not recipe.evaluation.tasks:
        check_unused("without tasks. Name --tasks", {"--limit": limit is not None})
        if text == "none":
            raise RecipeError("--text none without --tasks leaves nothing to measure. Name tasks, or a text.")
    about, found = _measure(model, revision, recipe, terminal(quiet))
    if json_file is not None:
        json_file.write_text(json.dumps(about | found.to_dict(), indent=2) + "\n", encoding="utf-8")
    _print(found)


def _measure(model: str, revision: str | None, recipe: Recipe, progress: Progress) -> tuple[dict[str, Any], Measured]:
    from lowdim.data.calibration import positions
    from lowdim.models.walk.opened import open_model
    from lowdim.models.walk.stream import watched
    from lowdim.prune import measure

    trusted = recipe.trust_remote_code
    opened = open_model(model, revision=revision, compute=recipe.compute, trust_remote_code=trusted, placed=True)
    tokenizer = opened.tokenizer()
    if tokenizer is None:
        raise CheckpointError(f"{model} has no tokenizer beside its weights. Copy the tokenizer's files there.")
    text = measure.ready(recipe, tokenizer, opened.config)
    opened.check_weights()
    limit = positions(opened.config)
    forward = watched(opened.stream.forward, len(opened.stream), "Evaluate", progress)
    found = measure.measure(forward, recipe, tokenizer, text, limit)
    return {"model": model, "revision": opened.source.revision if opened.source else None}, found


def _print(found: Measured) -> None:
    from lowdim.evaluate.quality.interval import wilson

    rows = []
    for task in found.tasks.values():
        low, high = wilson(int(task.outcomes.sum()), task.questions)
        value, chance = f"{task.value:.4f}", f"{task.chance:.4f}"
        rows.append((task.name, task.metric, value, f"{low:.4f} to {high:.4f}", chance, task.questions))
    if found.perplexity is not None:
        protocol = found.perplexity.protocol
        show(
            f"perplexity {found.perplexity.value:.4f} on {protocol['source']}: {protocol['windows']} windows "
            f"of {protocol['context']} tokens, {protocol['dtype']}, bos {protocol['bos']}, text {protocol['text'][:12]}"
        )
    table(("task", "metric", "value", "95%", "chance", "questions"), rows, 2)

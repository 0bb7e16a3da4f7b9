"""``lowdim stress``: what pruning costs where it shows first, over a grid of sparsities."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from lowdim.cli.checks import check_text, names, numbers
from lowdim.cli.guard import guarded
from lowdim.cli.options import Bos, Debug, Json, Model, Quiet, RecipeFile, Resume, Trust
from lowdim.cli.progress import terminal
from lowdim.cli.screen import say, show, table
from lowdim.core.errors import RecipeError

_STATES = {"within": "within", "beyond": "lost", "undecided": "too few", "chance": "guesses"}


@guarded(after_interrupt="What is measured is safe: run the same command with --resume to go on.")
def stress(
    model: Model,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the results go.")] = Path("stress"),
    grid: Annotated[str, typer.Option(metavar="SPARSITY,...", help="Shares of zeros.")] = "0,0.05,0.1,0.2,0.35,0.5",
    method: Annotated[str | None, typer.Option(metavar="NAME", help="How it is pruned, as in prune; wanda.")] = None,
    recover: Annotated[
        float | None, typer.Option(metavar="MINUTES", help="Also recover each pruned model, for so long.")
    ] = None,
    tolerance: Annotated[
        str, typer.Option(metavar="X[,TASK=X,...]", help="Share of a task's questions that may be lost.")
    ] = "0.02",
    tasks: Annotated[str, typer.Option(metavar="NAME,...", help="More tasks, beside the hard ones.")] = "",
    limit: Annotated[int | None, typer.Option(help="At most so many questions per task.")] = None,
    text: Annotated[str, typer.Option(metavar="builtin|none|FILE", help="Text to measure perplexity on.")] = "builtin",
    windows: Annotated[int | None, typer.Option(help="At most so many windows.")] = None,
    context: Annotated[int | None, typer.Option(help="Tokens per window; 512 if not given.")] = None,
    bos: Bos = "tokenizer",
    calibration: Annotated[str | None, typer.Option(metavar="builtin|FILE", help="Text to prune on.")] = None,
    samples: Annotated[int | None, typer.Option(help="Sequences of that text.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of every draw.")] = 0,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Any key of the recipe of pruning, or recover.KEY of recovery."
        ),
    ] = None,
    recipe: RecipeFile = None,
    trust_remote_code: Trust = False,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the pruned models in DIR.")] = False,
    resume: Resume = False,
    json_file: Json = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Prune over a grid and ask what breaks first: arithmetic, multi-hop, commonsense, long context.

    Dense and pruned see the same questions; a drop has its interval, and tasks at chance prove nothing.
    """
    from lowdim.core.recipe.base import read
    from lowdim.core.recipe.override import assignments as parsed
    from lowdim.core.recipe.override import override
    from lowdim.pipeline.recover.recipe import Recovery
    from lowdim.pipeline.stress.settings import Settings
    from lowdim.prune.recipe import Recipe

    flags = {"method": method, "calibration.source": calibration, "calibration.samples": samples}
    given = [(key, value) for key, value in flags.items() if value is not None]
    own_keys = [text for text in assignments or [] if not text.strip().startswith("recover.")]
    later = [
        (key.removeprefix("recover."), value)
        for key, value in parsed(a for a in assignments or [] if a not in own_keys)
    ]
    laid = override(Recipe, read(recipe) if recipe else {}, [*given, *parsed(own_keys)])
    whole, own = _tolerances(tolerance)
    settings = Settings(
        model=model,
        grid=tuple(numbers("--grid", grid)),
        recipe=laid,
        minutes=recover,
        recovery=override(Recovery, {}, later) if later else {},
        tasks=tuple(names(tasks)),
        limit=limit,
        tolerance=whole,
        own=own,
        text=None if text == "none" else text,
        windows=windows,
        context=context,
        bos=bos,
        seed=seed,
        trust_remote_code=trust_remote_code,
    )
    check_text("--text", settings.text)
    check_text("--calibration", calibration)
    from lowdim.pipeline.stress import api
    from lowdim.report.build import build

    announce = (lambda _: None) if quiet else say
    found = api.stress(settings, out, keep=keep, resume=resume, progress=terminal(quiet), announce=announce)
    if json_file is not None:
        json_file.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    _print(found)
    show(str(build(out)))


def _tolerances(text: str) -> tuple[float, dict[str, float]]:
    """Read the tolerance of all tasks, and those of single ones.

    Example:
        >>> _tolerances("0.01,csqa=0.05")
        (0.01, {'csqa': 0.05})
    """
    parts = [part.partition("=") for part in names(text)]
    whole = [value for value, equals, _ in parts if not equals]
    if len(whole) > 1:
        raise RecipeError(f"--tolerance takes one share for all tasks, such as 0.02,csqa=0.05; got {text!r}.")
    own = {name: numbers("--tolerance", value)[0] for name, equals, value in parts if equals and value}
    if len(own) < len(parts) - len(whole):
        raise RecipeError(f"--tolerance takes TASK=SHARE, such as csqa=0.05; got {text!r}.")
    return (numbers("--tolerance", whole[0])[0] if whole else 0.02), own


def _print(found: Mapping[str, Any]) -> None:
    dense = [
        (name, f"{task['accuracy']:.1%}", _ends(task["interval"]), f"{task['chance']:.1%}", task["questions"])
        for name, task in found["dense"]["tasks"].items()
    ]
    table(("dense", "accuracy", "95%", "chance", "questions"), dense, 1)
    table(
        ("zeros", "form", "perplexity", "task", "accuracy", "95%", "drop", "95%", "p", "within"),
        [
            (
                f"{row['sparsity']:.0%}" if index == 0 else None,
                row["form"] if index == 0 else None,
                None if index or row["perplexity"] is None else f"{row['perplexity']:.2f}",
                name,
                f"{task['pruned']:.1%}",
                _ends(task["pruned_interval"]),
                f"{100 * task['drop']:+.1f}",
                _ends(task["drop_interval"], "+.1f", ""),
                f"{task['p']:.3f}",
                _STATES[task["state"]],
            )
            for row in found["rows"]
            for index, (name, task) in enumerate(row["tasks"].items())
        ],
        4,
    )
    show(found["sentence"])


def _ends(interval: list[float], form: str = ".1f", unit: str = "%") -> str:
    low, high = (f"{100 * end:{form}}" for end in interval)
    return f"{low} to {high}{unit}"

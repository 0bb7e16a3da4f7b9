"""``lowdim front``: which compressed form of a model is worth deploying on this machine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from lowdim.cli.checks import check_text, names
from lowdim.cli.guard import guarded
from lowdim.cli.options import Bos, Debug, Json, Model, Quiet, Resume, Trust
from lowdim.cli.progress import terminal
from lowdim.cli.screen import say, show, table


@guarded(after_interrupt="What is finished is safe: run the same command with --resume to go on.")
def front(
    model: Model,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the forms and results go.")] = Path("front"),
    recover: Annotated[bool, typer.Option("--recover", help="Also train dense and sparse forms.")] = False,
    minutes: Annotated[float | None, typer.Option(help="Minutes of training for each trained form; 10.")] = None,
    forms: Annotated[str, typer.Option(metavar="NAME,...", help="Which contestants; all if not given.")] = "",
    budget_mb: Annotated[
        float | None, typer.Option(help="MB read per token to recommend within; dense int8's if not given.")
    ] = None,
    text: Annotated[str, typer.Option(metavar="builtin|FILE", help="Text to measure perplexity on.")] = "builtin",
    windows: Annotated[int | None, typer.Option(help="At most so many windows.")] = None,
    context: Annotated[int | None, typer.Option(help="Tokens per window; 512 if not given.")] = None,
    tasks: Annotated[str, typer.Option(metavar="NAME,...", help="Zero-shot tasks, or .jsonl files.")] = "",
    limit: Annotated[int | None, typer.Option(help="At most so many questions per task.")] = None,
    bos: Bos = "tokenizer",
    calibration: Annotated[str, typer.Option(metavar="builtin|FILE", help="Text to prune and train on.")] = "builtin",
    samples: Annotated[int | None, typer.Option(help="Sequences of that text.")] = None,
    tokens: Annotated[int, typer.Option(help="Tokens generated per timed round.")] = 32,
    seed: Annotated[int, typer.Option(help="Seed of every draw.")] = 0,
    trust_remote_code: Trust = False,
    resume: Resume = False,
    json_file: Json = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Make, measure and compare the compressed forms of a model, and recommend one.

    Perplexity and zero-shot accuracy against bytes read per token, file size and tokens per second.
    """
    from lowdim.pipeline.front.settings import Settings

    settings = Settings(
        model=model,
        forms=tuple(names(forms)),
        recover=recover,
        minutes=minutes,
        budget_mb=budget_mb,
        text=text,
        windows=windows,
        context=context,
        tasks=tuple(names(tasks)),
        limit=limit,
        bos=bos,
        calibration=calibration,
        samples=samples,
        tokens=tokens,
        seed=seed,
        trust_remote_code=trust_remote_code,
    )
    check_text("--text", text)
    check_text("--calibration", calibration)
    from lowdim.pipeline.front import api
    from lowdim.report.build import build

    announce = (lambda _: None) if quiet else say
    found = api.front(settings, out, resume=resume, progress=terminal(quiet), announce=announce)
    if json_file is not None:
        json_file.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    _print(found)
    show(str(build(out)))


def _print(found: Mapping[str, Any]) -> None:
    tasks = list(dict.fromkeys(name for row in found["rows"] for name in row["tasks"]))
    kept = set(found["fronts"]["bytes_per_token"])
    heads = ("form", "front", "perplexity", *tasks, "MB/token", "MB on disk", "tokens/s")
    table(heads, [_cells(row, tasks, row["form"] in kept) for row in found["rows"]], 2)
    notes: dict[str, list[str]] = {}
    for row in found["rows"]:
        if row["note"]:
            notes.setdefault(row["note"], []).append(row["form"])
    for note, noted in notes.items():
        show(f"- {', '.join(noted)}: {note}.")
    show(found["sentence"])
    if said := found.get("verdicts"):
        show(f"On the hard tasks, against {said['against']}:")
        for form, verdict in said["forms"].items():
            show(f"- {form}: {verdict['sentence']}")


def _cells(row: Mapping[str, Any], tasks: list[str], kept: bool) -> tuple[object, ...]:
    def written(value: float | None, digits: int, unit: float = 1) -> str | None:
        return None if value is None else f"{value / unit:.{digits}f}"

    return (
        row["form"],
        "*" if kept else None,
        written(row["perplexity"], 2),
        *(written(row["tasks"].get(name), 4) for name in tasks),
        written(row["bytes_per_token"], 1, 1e6),
        written(row["file_bytes"], 1, 1e6),
        written(row["tokens_per_s"], 1),
    )

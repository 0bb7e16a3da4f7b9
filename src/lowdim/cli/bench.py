"""``lowdim bench``: dense against sparse on this machine, layer by layer and end to end."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from lowdim.cli.checks import check_text
from lowdim.cli.guard import guarded
from lowdim.cli.options import Cache, Debug, Json, Quiet, Revision, Trust
from lowdim.cli.progress import terminal
from lowdim.cli.screen import show, table
from lowdim.infer.bench.result import Result
from lowdim.infer.bench.settings import DTYPES, Settings
from lowdim.infer.bench.shapes import SHAPES


@guarded()
def bench(
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="A directory, a hub id, a GGUF file, or builtin:NAME."),
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option(metavar="|".join(SHAPES), help="A shape with random weights, for want of a model."),
    ] = None,
    sparsity: Annotated[
        list[float] | None,
        typer.Option(help="Share of zeros to draw at random, for a shape or a dense model; may be repeated."),
    ] = None,
    dtype: Annotated[
        list[str] | None,
        typer.Option(
            metavar="|".join(DTYPES),
            help="Type of the stored weights; may be repeated. bf16 and int8 if not given.",
        ),
    ] = None,
    cache: Cache = "auto",
    tokens: Annotated[int, typer.Option(help="Tokens generated per round.")] = 32,
    threads: Annotated[
        int | None, typer.Option(help="Threads of every contestant; torch's own number if not given.")
    ] = None,
    text: Annotated[
        str, typer.Option(metavar="builtin|none|FILE", help="Measure perplexity on it too, in every form.")
    ] = "none",
    bos: Annotated[
        str | None,
        typer.Option(
            metavar="tokenizer|none|window", help="Start-of-text token of that text; as recorded if not given."
        ),
    ] = None,
    revision: Revision = None,
    trust_remote_code: Trust = False,
    json_file: Json = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Measure tokens per second, dense against sparse: torch, this runtime's dense kernels, its sparse ones.

    Written to MODEL.bench.json with --json, the results of a pruned model appear in its report.
    """
    settings = Settings(
        model=model,
        shape=shape,
        sparsities=tuple(dict.fromkeys(sparsity or ())),
        dtypes=tuple(dict.fromkeys(dtype or ("bf16", "int8"))),
        cache=cache,
        tokens=tokens,
        threads=threads,
        text=None if text == "none" else text,
        bos=bos,
        revision=revision,
        trust_remote_code=trust_remote_code,
    )
    check_text("--text", settings.text)
    from lowdim.infer.bench.run import bench as run

    found = run(settings, terminal(quiet))
    if json_file is not None:
        json_file.write_text(json.dumps(found.to_dict(), indent=2) + "\n", encoding="utf-8")
    _print(found)


def _print(found: Result) -> None:
    machine = found.machine
    show(
        f"{found.subject['name']} on {machine['cpu']}, threads: {machine['threads']}, kernels: {found.level}, "
        f"memory reads at {found.bandwidth / 1e9:.1f} GB/s"
    )
    heads = ("layer", "shape", "weights", "kernel", "µs", "MB", "bandwidth", "x torch bf16", "x own dense")
    table(heads, _layer_rows(found), 4)
    _print_models(found)
    for note in found.notes:
        show(f"- {note}")


def _print_models(found: Result) -> None:
    heads = [
        "model",
        "driven by",
        "tokens/s",
        "prefill/s",
        "MB/token",
        "bandwidth",
        "x torch bf16",
        "x own dense",
    ]
    quality = any(model.perplexity is not None for model in found.models)
    table(heads + ["perplexity"] * quality, _model_rows(found, quality), 2)


def _layer_rows(found: Result) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = []
    last: tuple[int, ...] = ()
    for row in found.layers:
        same = (row.rows, row.cols, row.count) == last
        last = (row.rows, row.cols, row.count)
        rows.append(
            (
                None if same else f"{', '.join(row.names)} ({row.count})",
                None if same else f"{row.rows}x{row.cols}",
                _form(row.dtype, row.sparsity),
                row.kernel,
                f"{row.microseconds:.1f}",
                f"{row.bytes / 1e6:.2f}",
                f"{row.bandwidth_share:.0%}",
                f"{row.over_torch:.2f}",
                None if row.over_dense is None else f"{row.over_dense:.2f}",
            )
        )
    return rows


def _model_rows(found: Result, quality: bool) -> list[tuple[object, ...]]:
    rows = []
    for model in found.models:
        perplexity = None if model.perplexity is None else f"{model.perplexity:.2f}"
        row: tuple[object, ...] = (
            f"{model.engine} {_form(model.dtype, model.sparsity)}",
            model.backend,
            f"{model.tokens_per_s:.1f}",
            None if model.prefill_tokens_per_s is None else f"{model.prefill_tokens_per_s:.0f}",
            f"{model.bytes_per_token / 1e6:.1f}",
            f"{model.bandwidth_share:.0%}",
            f"{model.over_torch:.2f}",
            None if model.over_dense is None else f"{model.over_dense:.2f}",
        )
        rows.append(row + ((perplexity,) if quality else ()))
    return rows


def _form(dtype: str, sparsity: float) -> str:
    return f"{dtype} {f'{100 * sparsity:.3g}%' if sparsity else 'dense'}"

"""Flags that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lowdim.infer.bench.settings import DTYPES
from lowdim.infer.decode.backend import CACHES

Model = Annotated[str, typer.Argument(metavar="MODEL", help="A directory, a hub id, a GGUF file, or builtin:NAME.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.")]
Compute = Annotated[str, typer.Option(metavar="auto|float32|bfloat16", help="Type of the forward passes.")]
Trust = Annotated[
    bool,
    typer.Option("--trust-remote-code", help="Run the Python code that a model brings along. Read it first."),
]
Json = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the results here.")]
RecipeFile = Annotated[
    Path | None, typer.Option("--recipe", metavar="FILE", help="A recipe in YAML; flags override it.")
]
Seed = Annotated[int | None, typer.Option(help="Seed of every draw.")]
Storage = Annotated[str | None, typer.Option(metavar="dense|packed", help="How the weights are stored.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where a killed run stopped.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only the result.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Dtype = Annotated[
    str | None, typer.Option(metavar="|".join(DTYPES), help="Type of the weights; as stored if not given.")
]
Cache = Annotated[
    str,
    typer.Option(
        metavar="|".join(CACHES), help="What keys and values are kept in; fp32 or bf16 as the weights if auto."
    ),
]
Bos = Annotated[
    str,
    typer.Option(
        "--bos",
        metavar="tokenizer|none|window",
        help="Start-of-text token: as the tokenizer does, never, or before every window and question.",
    ),
]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads; torch's own number if not given.")]

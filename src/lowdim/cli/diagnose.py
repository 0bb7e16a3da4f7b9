"""``lowdim diagnose``: what each block of a model does, and how much the model needs it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from lowdim.cli.checks import check_text, names
from lowdim.cli.guard import guarded
from lowdim.cli.options import Bos, Compute, Debug, Json, Quiet, Revision, Trust
from lowdim.cli.progress import terminal
from lowdim.cli.screen import say, show, table


@guarded()
def diagnose(
    model: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...", help="Directories, hub ids, GGUF files, builtin:NAME, or runs with checkpoints in them."
        ),
    ],
    text: Annotated[str, typer.Option(metavar="builtin|FILE", help="Text that the blocks are watched on.")] = "builtin",
    windows: Annotated[int, typer.Option(help="At most so many windows of it.")] = 8,
    context: Annotated[int | None, typer.Option(help="Tokens per window; 256 if not given.")] = None,
    measures: Annotated[
        str,
        typer.Option(metavar="NAME,...", help="Of drop, gradients, jacobian and spectra; all if not given."),
    ] = "",
    probes: Annotated[int, typer.Option(help="Random vectors per block and 1024 tokens, for the Jacobian.")] = 1,
    bos: Bos = "tokenizer",
    seed: Annotated[int, typer.Option(help="Of the random vectors.")] = 0,
    compute: Compute = "float32",
    revision: Revision = None,
    trust_remote_code: Trust = False,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page with pictures here.")] = None,
    json_file: Json = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Show what each block does: gradient, variance, angles, influence, Jacobian, spectra, the loss without it.

    Several models are shown side by side; the checkpoints of a run, by its directory, over its steps too.
    """
    check_text("--text", text)
    from lowdim.evaluate.diagnose.api import diagnose as run
    from lowdim.evaluate.diagnose.checkpoints import checkpoints

    options: dict[str, Any] = {"text": text, "windows": windows, "context": context, "probes": probes, "seed": seed}
    options |= {"bos": bos, "revision": revision, "compute": compute, "trust_remote_code": trust_remote_code}
    options |= {"measures": names(measures)} if measures else {}
    announce = (lambda _: None) if quiet else say
    plain = []
    for name, step in checkpoints(model):
        one = run(name, **options, progress=terminal(quiet), announce=announce)
        show(one.summary())
        table(one.tables()[0].heads, one.tables()[0].rows, 1)
        plain.append(one.to_dict() | ({} if step is None else {"step": step}))
    if json_file is not None:
        content = plain[0] if len(plain) == 1 else {"models": plain}
        json_file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    if html is not None:
        from lowdim.report.diagnose.page import write

        show(f"Report: {write(plain, html)}")

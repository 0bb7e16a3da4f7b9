"""``lowdim verify``: a result against its own record, in a process of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lowdim.cli.checks import check_text
from lowdim.cli.guard import FAILURE, guarded
from lowdim.cli.options import Debug, Trust
from lowdim.cli.screen import say, show
from lowdim.core.errors import LowdimError
from lowdim.core.lazy import torch

MARKS = {True: "ok", False: "FAILED", None: "not checked"}


@guarded()
def verify(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="What `lowdim prune` wrote.")],
    text: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The text of the recorded perplexity, if it was moved."),
    ] = None,
    trust_remote_code: Trust = False,
    debug: Debug = False,
) -> None:
    """Reload a result in a clean process; check tensors, hashes, masks, generation and perplexity.

    Exits with 1 if a check fails.
    """
    check_text("--text", None if text is None else str(text))
    from lowdim.models.disk.verify import verify as run

    report = run(out, recorded_text(out, text, trust_remote_code), trust_remote_code=trust_remote_code)
    for check in report.checks:
        show(f"{MARKS[check.passed]:>11}  {check.name}: {check.detail}")
    if not report.passed:
        say(f"Error: {out} is not what its lowdim.json says.")
        raise typer.Exit(FAILURE)


def recorded_text(out: Path, text: Path | None, trusted: bool = False) -> torch.Tensor | None:
    """Cut the text of the recorded perplexity again; None where there is no record or no text."""
    from lowdim.data.windows import windows
    from lowdim.models.disk import manifest
    from lowdim.models.load import need_tokenizer

    try:
        protocol: dict[str, Any] = manifest.read(out).to_dict()["evaluation"]["perplexity"]["protocol"]
        tokenizer = need_tokenizer(str(out), out, trusted)
        cut = windows(
            text or protocol["source"],
            tokenizer,
            protocol["context"],
            limit=protocol["windows"],
            join=protocol["join"],
            bos=protocol["bos"],
        )
    except (LowdimError, OSError, KeyError) as error:
        say(f"Note: perplexity is not checked, its text cannot be read again ({error}).")
        return None
    if cut.protocol["text"] != protocol["text"]:
        say(f"Note: perplexity is not checked, {text or protocol['source']} is not the text it was taken on.")
        return None
    return cut.input_ids

"""``lowdim report``: the page of a run, again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lowdim.cli.guard import guarded
from lowdim.cli.options import Debug
from lowdim.cli.screen import show


@guarded()
def report(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="What `lowdim prune`, `rank`, `front` and others wrote.")],
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Where to write; OUT.html if not given.")] = None,
    debug: Debug = False,
) -> None:
    """Write the HTML report of a run: one self-contained page."""
    from lowdim.report.build import build

    show(str(build(out, html)))

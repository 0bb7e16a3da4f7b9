"""``lowdim convert``: dense to packed and back, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lowdim.cli.guard import guarded
from lowdim.cli.options import Debug
from lowdim.cli.screen import show
from lowdim.core.errors import RecipeError, suggest

STORAGES = ("dense", "packed")


def add(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("convert")(convert)


@guarded(after_interrupt="Nothing was written: run the same command again.")
def convert(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="A model directory.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The directory to write.")],
    storage: Annotated[str, typer.Option(metavar="dense|packed", help="The form to write.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")] = False,
    debug: Debug = False,
) -> None:
    """Write a model again in the other form of storage, every weight to the bit."""
    if storage not in STORAGES:
        raise RecipeError(f"--storage must be dense or packed, got {storage!r}. {suggest(storage, STORAGES)}")
    from lowdim.models.convert import convert as run

    written = run(source, out, storage, overwrite=overwrite)
    before, after = _size(source), _size(written)
    show(f"{written}: {after / 1e6:.1f} MB, {storage} ({source} has {before / 1e6:.1f} MB)")


def _size(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())

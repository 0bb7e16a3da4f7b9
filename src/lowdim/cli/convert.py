"""``lowdim convert``: dense to packed and back, every weight keeps its value."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lowdim.cli.guard import guarded
from lowdim.cli.options import Debug
from lowdim.cli.screen import show
from lowdim.core.errors import RecipeError, suggest

STORAGES = ("dense", "packed")


@guarded(after_interrupt="Nothing was written: run the same command again.")
def convert(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="A model directory.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The directory to write.")],
    storage: Annotated[str, typer.Option(metavar="dense|packed", help="The form to write.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")] = False,
    debug: Debug = False,
) -> None:
    """Write a model again in the other form of storage; every weight keeps its value."""
    if storage not in STORAGES:
        raise RecipeError(f"--storage must be dense or packed, got {storage!r}. {suggest(storage, STORAGES)}")
    from lowdim.models.disk.convert import convert as run

    rounded, before = _rounded(source), _size(source)
    written = run(source, out, storage, overwrite=overwrite)
    after = _size(written)
    show(f"{written}: {after / 1e6:.1f} MB, {storage} ({source} has {before / 1e6:.1f} MB)")
    if rounded:
        show(f"{rounded} rounded weights are written as level x scale; packing them again does not find their codes.")


def _size(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())


def _rounded(directory: Path) -> int:
    """Return how many weights of a packed model were rounded."""
    from lowdim.models.disk.checkpoint import Checkpoint

    checkpoint = Checkpoint(directory)
    forms = [checkpoint.form(name) for name in checkpoint.names()]
    return sum(form is not None and form.grid is not None for form in forms)

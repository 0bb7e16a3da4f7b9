"""``lowdim convert``: dense to packed and back; all weights of the layers rounded; or one sparse network of several."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lowdim.cli.guard import guarded
from lowdim.cli.options import Debug, Overwrite, Trust
from lowdim.cli.screen import show
from lowdim.core.errors import RecipeError, suggest
from lowdim.core.quantize import GROUPS, NAMES

STORAGES = ("dense", "packed")


@guarded(after_interrupt="Nothing was written: run the same command again.")
def convert(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="A model directory; with --dtype any model.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The directory to write.")],
    storage: Annotated[
        str | None, typer.Option(metavar="dense|packed", help="The form to write; every weight keeps its value.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(metavar="|".join(NAMES), help="Round the linear layers of the blocks instead.")
    ] = None,
    group: Annotated[
        int | None,
        typer.Option(
            metavar="|".join(map(str, GROUPS)), help="Columns that share a scale, with --dtype; 64 if not given."
        ),
    ] = None,
    subnet: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Write this one of the sparse networks that share the weights of SOURCE."),
    ] = None,
    trust_remote_code: Trust = False,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """Write a model again in the other form of storage, with the linear layers of its blocks rounded, or one subnet."""
    if [storage, dtype, subnet].count(None) != 2:
        raise RecipeError(
            "give --storage, to keep every weight, --dtype, to round, or --subnet, to take one of several networks: "
            "one of the three."
        )
    if subnet is not None and group is None:
        _take(source, out, subnet, overwrite)
    elif dtype is not None:
        _round(source, out, dtype, group or 64, overwrite, trust_remote_code)
    elif group is not None:
        raise RecipeError(f"--group {group} goes with --dtype: nothing is rounded otherwise. Leave it out.")
    else:
        _store(source, out, storage, overwrite)


def _store(source: Path, out: Path, storage: str | None, overwrite: bool) -> None:
    if storage not in STORAGES:
        raise RecipeError(f"--storage must be dense or packed, got {storage!r}. {suggest(str(storage), STORAGES)}")
    from lowdim.models.disk.convert import convert as run

    rounded, before = _rounded(source), _size(source)
    written = run(source, out, storage, overwrite=overwrite)
    after = _size(written)
    show(f"{written}: {after / 1e6:.1f} MB, {storage} ({source} has {before / 1e6:.1f} MB)")
    if rounded:
        show(f"{rounded} rounded weights are written as level x scale; packing them again does not find their codes.")


def _take(source: Path, out: Path, name: str, overwrite: bool) -> None:
    from lowdim.models.subnets import extract, read_nets

    written = extract(source, name, out, overwrite=overwrite)
    net = read_nets(source)[name]
    show(
        f"{written}: {_size(written) / 1e6:.1f} MB, {net.pattern}, {net.sparsity:.1%} zeros in {len(net.masks)} weights"
    )


def _round(source: Path, out: Path, dtype: str, group: int, overwrite: bool, trust_remote_code: bool) -> None:
    from lowdim.core.quantize import Grid
    from lowdim.models.quantize import quantize

    if dtype not in NAMES:
        raise RecipeError(f"--dtype must be int8, int4 or int3, got {dtype!r}. {suggest(dtype, NAMES)}")
    grid = Grid.of(dtype, group)
    written = quantize(str(source), out, grid, overwrite=overwrite, trust_remote_code=trust_remote_code)
    show(
        f"{written}: {_size(written) / 1e6:.1f} MB, {_rounded(written)} weights rounded to {dtype}, all else as it was"
    )


def _size(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())


def _rounded(directory: Path) -> int:
    """Return how many weights of a packed model were rounded."""
    from lowdim.models.disk.checkpoint import Checkpoint

    checkpoint = Checkpoint(directory)
    forms = [checkpoint.form(name) for name in checkpoint.names()]
    return sum(form is not None and form.grid is not None for form in forms)

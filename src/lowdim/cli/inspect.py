"""``lowdim inspect``: what a model is like, its weights untouched."""

from __future__ import annotations

import typer

from lowdim.cli.guard import guarded
from lowdim.cli.options import Debug, Model, Quiet


def add(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("inspect")(inspect)


@guarded()
def inspect(
    model: Model,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Show sparsity per layer."""

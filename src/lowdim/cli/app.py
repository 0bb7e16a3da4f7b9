"""The program ``lowdim``: its commands, in the order a user meets them."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from lowdim.cli import (
    bench,
    compose,
    convert,
    diagnose,
    distill_draft,
    evaluate,
    finetune,
    front,
    generate,
    inspect,
    methods,
    plan_training,
    pretrain,
    prune,
    rank,
    recover,
    report,
    screen,
    search_decay,
    serve,
    stress,
    sweep,
    train_sparse,
    verify,
)

app = typer.Typer(
    name="lowdim",
    help="Make language models sparse, and measure on your own machine what that bought.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"lowdim {version('lowdim')}")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None: ...


for _command in (
    prune.prune,
    recover.recover,
    finetune.finetune,
    compose.compose,
    pretrain.pretrain,
    search_decay.search_decay,
    distill_draft.distill_draft,
    rank.rank,
    train_sparse.train_sparse,
    plan_training.plan_training,
    evaluate.evaluate,
    front.front,
    stress.stress,
    inspect.inspect,
    diagnose.diagnose,
    sweep.sweep,
    bench.bench,
    generate.generate,
    serve.serve,
    methods.methods,
    verify.verify,
    convert.convert,
    report.report,
):
    app.command()(_command)


# Threads of OpenMP, torch's and the kernels' alike, spin for milliseconds while they wait for each other, and so take
# the cores that other work shares from the very thread they wait for. These spin for microseconds, then sleep.
_WAITING = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "1000"}


def main() -> None:
    """Run the program, with threads that wait in their sleep unless the environment says how they wait.

    That is read when torch is loaded, so it is set before.
    """
    if not any(name in os.environ for name in (*_WAITING, "KMP_BLOCKTIME")):
        os.environ.update(_WAITING)
    screen.prepare()
    app()

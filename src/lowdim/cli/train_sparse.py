"""``lowdim train-sparse``: a sparse network and its twins, from a recipe or a few flags."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from lowdim.cli.guard import guarded
from lowdim.cli.options import Debug, Overwrite, Quiet, RecipeFile, Resume
from lowdim.cli.progress import terminal
from lowdim.cli.screen import show, table
from lowdim.core import registry
from lowdim.report.training.facts import execution, lines, seconds, verdict


@guarded(after_interrupt="Finished epochs are safe if --out was given: repeat the command with --resume to go on.")
def train_sparse(
    recipe: RecipeFile = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Where networks, masks and results go.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(metavar="fashion-mnist|...|PATH", help="What is trained on; of yours a folder or table."),
    ] = None,
    net: Annotated[str | None, typer.Option(metavar="mlp|conv|text", help="What is trained.")] = None,
    method: Annotated[
        str | None, typer.Option("--method", metavar="|".join(registry.names("training")), help="How the masks move.")
    ] = None,
    sparsity: Annotated[float | None, typer.Option(help="Share of zeros in the sparse layers, in [0, 1).")] = None,
    allocation: Annotated[
        str | None, typer.Option(metavar="erk|er|uniform|...", help="How it is spread over the layers.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training examples.")] = None,
    batch: Annotated[int | None, typer.Option(help="Examples per step.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate at the start.")] = None,
    twins: Annotated[
        str | None,
        typer.Option(metavar="dense,small,static,resampled|none", help="Networks trained beside it, to compare with."),
    ] = None,
    objective: Annotated[
        str | None,
        typer.Option(metavar="|".join(registry.names("objective")), help="What is minimised, by the twins as well."),
    ] = None,
    sampler: Annotated[
        str | None,
        typer.Option(metavar="|".join(registry.names("sampler")), help="Which samples an epoch draws."),
    ] = None,
    ranks: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Ranks of the samples, which 'lowdim rank' wrote.")
    ] = None,
    groups: Annotated[
        str | None,
        typer.Option(metavar="NAME|COLUMN", help="Which labels make groups: a cue of the set, a column of your table."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of weights, masks and the order of data.")] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any key of the recipe, e.g. training.every=50."),
    ] = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train a sparse network, and beside it the dense and the static ones that it has to be compared with.

    Flags override the fields of --recipe, and --set overrides both. Weights are masked: the run shows what sparsity
    costs in accuracy and would save in arithmetic, and is itself no faster than dense training. With --set executor=csr
    the linear layers of an MLP are really sparse.
    """
    flags = {
        "data.name": data,
        "net.name": net,
        "training.name": method,
        "sparsity": sparsity,
        "allocation": allocation,
        "epochs": epochs,
        "batch": batch,
        "optimizer.lr": lr,
        "twins": twins,
        "objective.name": objective,
        "sampler.name": sampler,
        "ranks.path": None if ranks is None else str(ranks),
        "groups": groups,
        "seed": seed,
    }
    from lowdim.train.compare.recipe import TrainingRecipe

    checked = TrainingRecipe.assemble(recipe, flags, assignments or [])
    from lowdim.train.compare.run import train

    result = train(checked, out=out, resume=resume, overwrite=overwrite, progress=terminal(quiet))
    finish(result.facts, result.run)
    if result.out is not None:
        from lowdim.report.build import build

        show(f"Output: {result.out}\nReport: {build(result.out)}")


def finish(facts: Mapping[str, object], run: Mapping[str, object]) -> None:
    """Print the table of a finished run and what it says."""
    found = lines(facts)
    heads = ["network", "test accuracy, %", "to dense", "zeros", "kept", "R_s", "FLOPs", "memory", "time"]
    rows = [
        [n.title, n.accuracy, n.change, n.zeros, n.kept, n.explored, n.flops, n.memory, time]
        for n, time in zip(found, seconds(run), strict=True)
    ]
    if any(n.worst for n in found):
        heads.insert(3, "worst group, %")
        for row, n in zip(rows, found, strict=True):
            row.insert(3, n.worst)
    table(heads, rows, 1)
    show(f"{verdict(facts)}\n{execution(facts)}")

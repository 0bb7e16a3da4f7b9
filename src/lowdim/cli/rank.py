"""``lowdim rank``: samples by how spurious they are, and whether there is a sign of a bias."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from lowdim.cli.guard import guarded
from lowdim.cli.options import Debug, Overwrite, Quiet, Resume
from lowdim.cli.progress import terminal
from lowdim.cli.screen import say, show, table
from lowdim.core import registry
from lowdim.core.recipe import override

_DATA = "data.settings."


@guarded(after_interrupt="Finished epochs are safe if --out was given: repeat the command with --resume to go on.")
def rank(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="A built-in set, a folder with a folder of pictures per class, or a CSV or JSON lines file.",
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Where ranks go; DIR.html gets the sheet.")
    ] = None,
    net: Annotated[
        str, typer.Option(metavar="auto|mlp|conv|text|minilm|efficientnet-lite0", help="What ranks: it is trained.")
    ] = "auto",
    tune: Annotated[
        bool, typer.Option("--tune", help="Train the encoder as well, not only a small network on its features.")
    ] = False,
    method: Annotated[
        str, typer.Option(metavar="|".join(registry.names("selector")), help="How samples are ranked.")
    ] = "sebra",
    text: Annotated[str, typer.Option(metavar="COLUMN", help="Of a table: where the texts stand.")] = "text",
    label: Annotated[str, typer.Option(metavar="COLUMN", help="Of a table: where the classes stand.")] = "label",
    name: Annotated[
        str | None, typer.Option("--id", metavar="COLUMN", help="Of a table: names of the samples; else row numbers.")
    ] = None,
    size: Annotated[
        int | None, typer.Option(help="Pixels along a side of your pictures; 64, or 128 to encode, not for training.")
    ] = None,
    skip_unreadable: Annotated[
        bool, typer.Option("--skip-unreadable", help="Leave out pictures that cannot be read; they are counted.")
    ] = False,
    limit: Annotated[int | None, typer.Option(help="Samples at most.")] = None,
    validation: Annotated[
        float | None, typer.Option(help="Share set aside, as in training: 0.1 of a built-in set, else none.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the weights, the order and the cut.")] = 0,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="A setting of the selector, as p_crit=0.7, or data.settings.KEY=VALUE."
        ),
    ] = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Rank samples within their class: what a network learns first, it learns from what is spurious.

    The sheet shows the most and the least spurious samples of every class. No labels of a bias are needed, and none are
    used. Ranks go into training with `lowdim train-sparse --ranks DIR --objective sebra`.
    """
    settings, planted = _settings(assignments or [])
    from lowdim.data.labelled.source import Columns
    from lowdim.train.selection.api import rank as run
    from lowdim.train.selection.sebra_ranking import RankWarning

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RankWarning)
        found = run(
            data,
            out=out,
            net=net,
            tune=tune,
            method={"name": method, **settings},
            columns=Columns(text=text, label=label, id=name),
            size=size,
            skip_unreadable=skip_unreadable,
            limit=limit,
            validation=validation,
            settings=planted or None,
            seed=seed,
            resume=resume,
            overwrite=overwrite,
            progress=terminal(quiet),
        )
    for warning in caught:
        say(f"Warning: {warning.message}")
    from lowdim.report.ranking.page import counts

    heads = ["class", "samples", "in rank 1", "in its last rank", "which is"]
    table(heads, counts(found.ranks), 1)
    show(found.sign.sentence())
    if found.out is not None:
        from lowdim.report.build import build

        show(f"Output: {found.out}\nSheet: {build(found.out)}")


def _settings(assignments: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the settings of the selector, and those of the data."""
    found: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    for key, value in override.assignments(assignments):
        of_data = key.startswith(_DATA)
        found[of_data][key.removeprefix(_DATA)] = value
    return found

"""``lowdim sweep``: a grid of runs of any other command, and one table of what they report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lowdim.cli.guard import guarded
from lowdim.cli.options import Debug, Quiet
from lowdim.cli.screen import say, show, table
from lowdim.core.errors import RecipeError, suggest

if TYPE_CHECKING:
    from lowdim.pipeline.sweep.command import Command

_RECIPES = {
    "prune": {"": "lowdim.prune.recipe:Recipe", "recover.": "lowdim.pipeline.recover.recipe:Recovery"},
    "recover": {"": "lowdim.pipeline.recover.recipe:Recovery"},
    "pretrain": {"": "lowdim.train.pretrain.recipe:Pretraining"},
    "search-decay": {"": "lowdim.train.pretrain.recipe:Pretraining"},
    "train-sparse": {"": "lowdim.train.compare.recipe:TrainingRecipe"},
    "finetune": {"": "lowdim.train.finetune.recipe:Finetuning"},
    "distill-draft": {"": "lowdim.train.draft.recipe:Drafting"},
    "compose": {"": "lowdim.pipeline.compose.recipe:Composition"},
    "stress": {"": "lowdim.prune.recipe:Recipe", "recover.": "lowdim.pipeline.recover.recipe:Recovery"},
}
"""The recipes whose keys a command sets, by what stands before their keys."""
_MOST = 6  # numbers in the table on the screen; the files hold all


@guarded(after_interrupt="What is finished is safe: run the same command to go on.")
def sweep(
    context: typer.Context,
    recipe: Annotated[Path, typer.Option("--recipe", metavar="FILE", help="The command and its grid, in YAML.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where each run gets a directory of its own.")],
    jobs: Annotated[int, typer.Option(help="Runs at a time, each with its share of the threads.")] = 1,
    index: Annotated[
        int | None, typer.Option(help="Only the run of that number, from 0, as in a SLURM array job.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Number and print the runs and their hours, and stop.")
    ] = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Run a command over a grid of its flags and settings, and put what the runs report on one page and into a table.

    What is finished is not run again. A run that fails stops no other; the exit code is then 1.
    """
    from lowdim.pipeline.sweep.api import Sweep
    from lowdim.pipeline.sweep.recipe import SweepRecipe

    checked = SweepRecipe.from_yaml(recipe)
    made = Sweep(checked, described(context.find_root().command, checked.command), out)
    if dry_run:
        chosen = {place.run.index for place in made.chosen(index)}
        table(("run", "name", "state", "command"), [row for row in made.plan() if row[0] in chosen])
        show(made.forecast(index))
        return
    finished = made.run(jobs, index, (lambda _: None) if quiet else say)
    _print(made.sheet(), out)
    _tell_absent(made)
    from lowdim.report.build import build

    show(f"Report: {build(out)}")
    if not finished:
        raise typer.Exit(1)


def described(program: Any, name: str) -> Command:
    """Return what the program's parser says of one of its commands.

    Raises:
        RecipeError: there is no such command, or it is this one.
    """
    from lowdim.pipeline.sweep.command import Command

    if name not in program.commands or name == "sweep":
        raise RecipeError(f"unknown command {name!r}. {suggest(name, set(program.commands) - {'sweep'})}")
    found = program.commands[name]
    options = [each for each in found.params if each.param_type_name == "option"]
    flags = {flag for option in options for flag in option.opts}
    places = [each.name.upper() for each in found.params if each.param_type_name == "argument"]
    switches = {flag: option for option in options if option.is_flag for flag in option.opts}
    return Command(
        name,
        out="OUT" if "OUT" in places else "--out" if "--out" in flags else "",
        json="--json" in flags - switches.keys(),
        again=next((flag for flag in ("--resume", "--overwrite") if flag in flags), ""),
        places=tuple(place for place in places if place != "OUT"),
        switches={flag: (flag, next(iter(option.secondary_opts), "")) for flag, option in switches.items()},
        keys=_keys(name),
        sets="--set" in flags,
        parse=_parser(found),
        **({"seconds": _timer(found)} if name == "pretrain" else {}),
    )


def _timer(command: Any) -> Callable[[Sequence[Sequence[str]]], tuple[float, float]]:
    """Return what times runs of pre-training by their arguments."""

    def seconds(runs: Sequence[Sequence[str]]) -> tuple[float, float]:
        from lowdim.pipeline.sweep.forecast import pretraining
        from lowdim.train.pretrain.recipe import Pretraining

        given = [command.make_context(command.name, [*words, "--dry-run"]).params for words in runs]
        trust = [{"trust_remote_code": each["trust_remote_code"] or None} for each in given]
        return pretraining(
            [Pretraining.assemble(e["recipe"], t, e["assignments"] or []) for e, t in zip(given, trust, strict=True)]
        )

    return seconds


def _parser(command: Any) -> Callable[[Sequence[str]], None]:
    def parse(words: Sequence[str]) -> None:
        try:
            command.make_context(command.name, list(words))
        except Exception as error:
            if not hasattr(error, "format_message"):  # what parsers raise for a wrong word, wherever typer has it from
                raise
            raise RecipeError(error.format_message()) from error

    return parse


def _keys(name: str) -> tuple[str, ...]:
    """Return what ``--set`` of a command takes."""
    from lowdim.core.recipe import families
    from lowdim.core.recipe.override import known_keys
    from lowdim.data.classification import setting_names

    found: list[str] = []
    for prefix, place in _RECIPES.get(name, {}).items():
        module, _, recipe = place.partition(":")
        found += [f"{prefix}{key}" for key in known_keys(getattr(import_module(module), recipe))]
    if name == "rank":
        found += [key.removeprefix("selector.") for key in families.keys("selector") if key != "selector.name"]
    if name in ("rank", "train-sparse"):
        found += [f"data.settings.{key}" for key in setting_names()]
    return tuple(found)


def _print(found: Any, out: Path) -> None:
    shown = found.names[:_MOST]
    heads = [axis.lstrip("-") for axis in found.axes]
    rows = [
        (*(row.axes.get(axis, "") for axis in found.axes), row.state, *(_cell(row, name) for name in shown))
        for row in found.rows
    ]
    table((*heads, "runs", *shown), rows, len(heads))
    for row in found.rows:
        name = ", ".join(f"{key.lstrip('-')}={value}" for key, value in row.axes.items())
        for error in row.errors:
            show(f"- {name}: {error}")
    if len(found.names) > len(shown):
        more = len(found.names) - len(shown)
        show(f"{more} more numbers are in {out / 'table.csv'}; 'report' in the recipe picks the columns.")
    show(f"Table: {out / 'table.csv'}")


def _tell_absent(made: Any) -> None:
    """Say which numbers of ``report`` no run has, and what there is."""
    if absent := made.sheet().absent:
        from lowdim.pipeline.sweep.numbers import numbers

        there = {name for place in made.places if place.state() == "finished" for name in numbers(place)}
        say(f"Warning: no run reports {', '.join(absent)}. There are: {', '.join(sorted(there)) or 'no numbers'}.")


def _cell(row: Any, name: str) -> str:
    mean, spread = row.mean(name), row.spread(name)
    if mean is None:
        return ""
    return f"{mean:.5g}" if spread is None else f"{mean:.5g} ± {spread:.2g}"

"""Writing to whatever the two standard streams are: terminals of any width and encoding, files, pipes."""

from __future__ import annotations

import codecs
import contextlib
import os
import sys
from collections.abc import Iterable, Sequence

import typer

_ASCII = {"×": "x", "−": "-", "–": "-", "—": "-", "…": "...", "≤": "<=", "≥": ">=", "·": "-", "±": "+-"}


def prepare() -> None:
    """Make both streams print what they can and spell the rest, instead of failing on it."""
    codecs.register_error("lowdim.spell", spell)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="lowdim.spell")


def spell(error: UnicodeError) -> tuple[str, int]:
    """Replace one character that an encoding lacks.

    Example:
        >>> codecs.register_error("lowdim.spell", spell)
        >>> "2 × 3 → 6".encode("ascii", "lowdim.spell")
        b'2 x 3 ? 6'
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return _ASCII.get(error.object[error.start], "?"), error.start + 1


def show(text: str) -> None:
    """Write a result to stdout, from the first process of a parallel run alone.

    Where nobody reads it any more, as behind ``| head``, the work goes on unheard: a page is still to be written.
    """
    if is_first():
        try:
            typer.echo(text)
        except BrokenPipeError:
            fall_silent()


def fall_silent() -> None:
    """Let all that is still written to stdout, by Python at its end too, go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def say(text: str) -> None:
    """Write one line or paragraph to stderr; the processes of a parallel run name their rank."""
    typer.echo(text if is_first() else f"[rank {os.environ['RANK']}] {text}", err=True)


def is_first() -> bool:
    """Return whether this is the only process, or the first of a parallel run."""
    return os.environ.get("RANK", "0") == "0"


def table(heads: Sequence[str], rows: Iterable[Sequence[object]], numbers_from: int | None = None) -> None:
    """Write a table to stdout that fits the terminal; in a file or a pipe no cell is cut.

    Args:
        heads: the columns' names.
        rows: their cells; None is an empty cell.
        numbers_from: the first of the columns that are set flush right.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False, highlight=False)
    drawn = Table(*heads, box=box.SIMPLE_HEAD)
    for column in drawn.columns[numbers_from:] if numbers_from is not None else ():
        column.justify = "right"
    for row in rows:
        drawn.add_row(*("" if cell is None else str(cell) for cell in row))
    if not console.is_terminal:
        free = console.options.update(width=1000)
        console.width = max(console.width, console.measure(drawn, options=free).maximum)
    if is_first() and drawn.rows:
        with contextlib.suppress(SystemExit):  # rich falls silent by itself, and then would end the program
            console.print(drawn)

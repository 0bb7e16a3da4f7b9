"""Checks of what a command line names, made before anything is loaded."""

from __future__ import annotations

from pathlib import Path

from lowdim.core.errors import RecipeError
from lowdim.data.errors import DataError
from lowdim.data.text import check_suffix


def numbers(name: str, text: str) -> list[float]:
    """Read a list of numbers.

    Example:
        >>> numbers("--grid", "0.1,0.3")
        [0.1, 0.3]
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    try:
        return [float(part) for part in parts]
    except ValueError:
        raise RecipeError(f"{name} takes numbers with commas between them, such as 0.1,0.3; got {text!r}.") from None


def check_text(name: str, source: str | None) -> None:
    """Refuse a text that is not there or of a format that is not read, before a model is loaded to read it.

    Example:
        >>> check_text("--text", "builtin")
    """
    if source is None or source == "auto" or source.partition(":")[0] == "builtin":
        return
    if not Path(source).expanduser().exists():
        raise RecipeError(f"{name}: there is no file {source!r}. Check the path, or write 'builtin'.")
    if Path(source).expanduser().is_dir():
        return
    try:
        check_suffix(source)
    except DataError as error:
        raise RecipeError(f"{name}: {error}.") from error


def check_folder(name: str, file: Path | None) -> None:
    """Refuse a place to write to that is not there, before minutes of work are spent on what goes there.

    Example:
        >>> check_folder("--json", Path("found.json"))
    """
    if file is not None and not file.absolute().parent.is_dir():
        raise RecipeError(f"{name}: there is no folder {file.parent}. Make it, or write elsewhere.")

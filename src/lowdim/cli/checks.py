"""Checks of what a command line names, made before anything is loaded."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from lowdim.core.errors import RecipeError
from lowdim.data.errors import DataError, check_suffix


def names(text: str) -> list[str]:
    """Read a list of names.

    Example:
        >>> names("arc_easy, hellaswag")
        ['arc_easy', 'hellaswag']
    """
    return [part.strip() for part in text.split(",") if part.strip()]


def numbers(name: str, text: str) -> list[float]:
    """Read a list of numbers.

    Example:
        >>> numbers("--grid", "0.1,0.3")
        [0.1, 0.3]
    """
    try:
        return [float(part) for part in names(text)]
    except ValueError:
        raise RecipeError(f"{name} takes numbers with commas between them, such as 0.1,0.3; got {text!r}.") from None


_OF_A_RUN = {"resume": "--resume", "overwrite": "--overwrite", "keep": "--keep", "json_file": "--json"}


def check_idle(given: Mapping[str, object]) -> None:
    """Refuse what is said of a run, or of its results, where none is made; every command asks.

    Args:
        given: the arguments of a command.

    Example:
        >>> check_idle({"dry_run": True, "resume": False, "out": "DIR"})
        >>> check_idle({"dry_run": True, "resume": True})
        Traceback (most recent call last):
        lowdim.core.errors.RecipeError: --resume changes nothing beside --dry-run: a plan is that of the whole run, and
        nothing is written. Leave one of them out.
    """
    for name, flag in _OF_A_RUN.items():
        if given.get("dry_run") and given.get(name):
            raise RecipeError(
                f"{flag} changes nothing beside --dry-run: a plan is that of the whole run, and nothing is written. "
                "Leave one of them out."
            )


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


def check_unused(why: str, given: Mapping[str, bool]) -> None:
    """Refuse flags that change nothing beside what else was said.

    Args:
        why: they do not, as the end of a sentence.
        given: by flag, whether it was given.

    Example:
        >>> check_unused("at --temperature 0. Raise it", {"--top-k": False, "--top-p": True})
        Traceback (most recent call last):
        lowdim.core.errors.RecipeError: --top-p changes nothing at --temperature 0. Raise it, or leave --top-p out.
    """
    for flag, value in given.items():
        if value:
            raise RecipeError(f"{flag} changes nothing {why}, or leave {flag} out.")


_WRITTEN = {"json_file": "--json", "html": "--html"}


def check_written(given: Mapping[str, object]) -> None:
    """Refuse a file that could not be written, before minutes of work are spent on what goes there; for every command.

    Args:
        given: the arguments of a command.

    Example:
        >>> check_written({"json_file": Path("found.json"), "html": None})
        >>> check_written({"json_file": Path("/")})
        Traceback (most recent call last):
        lowdim.core.errors.RecipeError: --json: / is a folder. Name a file in it, or write elsewhere.
    """
    for name, flag in _WRITTEN.items():
        file = given.get(name)
        if not isinstance(file, Path):
            continue
        folder = file.absolute().parent
        if not folder.is_dir():
            raise RecipeError(f"{flag}: there is no folder {file.parent}. Make it, or write elsewhere.")
        if file.is_dir():
            raise RecipeError(f"{flag}: {file} is a folder. Name a file in it, or write elsewhere.")
        if not os.access(file if file.exists() else folder, os.W_OK):
            raise RecipeError(f"{flag}: {file} may not be written. Change its permissions, or write elsewhere.")


def check_characters(name: str, text: str) -> None:
    r"""Refuse a text in which bytes that are no UTF-8 were smuggled past Python's decoder, as it does by itself.

    Example:
        >>> check_characters("PROMPT", "caf\udce9")
        Traceback (most recent call last):
        lowdim.core.errors.RecipeError: PROMPT is not UTF-8: byte 0xe9 at position 3. Convert it, as with iconv.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        what, at = ord(text[error.start]), len(text[: error.start].encode())
        kind = f"byte 0x{what - 0xDC00:02x}" if 0xDC80 <= what <= 0xDCFF else "half a surrogate pair"
        raise RecipeError(f"{name} is not UTF-8: {kind} at position {at}. Convert it, as with iconv.") from None

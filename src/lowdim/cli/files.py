"""Checks of the files a command line names, made before anything is loaded."""

from __future__ import annotations

from pathlib import Path

from lowdim.core.errors import RecipeError


def check_text(name: str, source: str | None) -> None:
    """Refuse a text that is not there, before a model is loaded to read it.

    Raises:
        RecipeError: ``source`` is neither built in nor an existing file.

    Example:
        >>> check_text("--text", "builtin")
    """
    if source is None or source == "auto" or source.partition(":")[0] == "builtin":
        return
    if not Path(source).expanduser().exists():
        raise RecipeError(f"{name}: there is no file {source!r}. Check the path, or write 'builtin'.")

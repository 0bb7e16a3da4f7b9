"""Errors as one readable paragraph on stderr, and the program's exit codes."""

from __future__ import annotations

import errno
import functools
import re
import traceback
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import typer

from lowdim.cli.screen import say
from lowdim.core.errors import LowdimError, RecipeError

FAILURE, USAGE, INTERRUPTED = 1, 2, 130

_ADVICE = {"--overwrite": r"overwrit(e|ing) it", "--resume": r"resume (it|from there)"}

P = ParamSpec("P")
R = TypeVar("R")


def guarded(after_interrupt: str = "") -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Wrap a command so that whatever it raises ends in one paragraph and the right exit code.

    A mistake in the recipe or the flags exits with 2, Ctrl-C with 130, everything else with 1. Where the
    command's ``debug`` flag is set, the traceback comes before the paragraph.
    """

    def wrap(command: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(command)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return command(*args, **kwargs)
            except (typer.Exit, typer.Abort):
                raise
            except KeyboardInterrupt:
                say(f"\nInterrupted. {after_interrupt}".rstrip())
                raise typer.Exit(INTERRUPTED) from None
            except Exception as error:
                if kwargs.get("debug"):
                    traceback.print_exc()
                say(f"Error: {describe(error)}")
                raise typer.Exit(USAGE if isinstance(error, RecipeError) else FAILURE) from error

        return run

    return wrap


def _flags(message: str) -> str:
    """Name the flags behind what the library, which knows of no command line, advises."""
    flags = [flag for flag, advice in _ADVICE.items() if re.search(advice, message, re.IGNORECASE)]
    return f" ({' or '.join(flags)})" if flags and flags[0] not in message else ""


def describe(error: Exception) -> str:
    """Return what went wrong and what to do about it, in one paragraph.

    Example:
        >>> describe(FileNotFoundError(2, "No such file or directory", "a.yaml"))
        'a.yaml: No such file or directory.'
    """
    if isinstance(error, LowdimError):
        return str(error) + _flags(str(error))
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return f"out of memory ({error}). Lower --samples or --context; --dry-run estimates what is needed."
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = error.filename or "the output"
        return f"the disk is full: {where} could not be written. Free some room, then run again with --resume."
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}." if error.filename else f"{error.strerror}."
    return f"{type(error).__name__}: {error}. This is not a mistake lowdim knows; --debug shows where it arose."

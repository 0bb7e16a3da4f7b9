"""Errors as one readable paragraph on stderr, and the program's exit codes."""

from __future__ import annotations

import errno
import functools
import os
import re
import traceback
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, get_type_hints

import typer

from lowdim.cli.checks import check_idle, check_written
from lowdim.cli.screen import say
from lowdim.core.errors import LowdimError, RecipeError

FAILURE, USAGE, INTERRUPTED = 1, 2, 130

_ADVICE = {
    "--overwrite": r"overwrit(e|ing) it",
    "--resume": r"resume (it|from there)",
    "--trust-remote-code": "trust_remote_code=True",
}

P = ParamSpec("P")
R = TypeVar("R")


def guarded(after_interrupt: str = "") -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Wrap a command so that whatever it raises ends in one paragraph and the right exit code.

    A mistake in the recipe or the flags exits with 2, Ctrl-C with 130, everything else with 1. Where the
    command's ``debug`` flag is set, the traceback comes before the paragraph. A flag is advised only where the command
    has it; one that would change nothing is refused, and so is a file that cannot be written (`lowdim.cli.checks`).
    """

    def wrap(command: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(command)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                check_idle(kwargs)
                check_written(kwargs)
                _name_output(kwargs)
                return command(*args, **kwargs)
            except (typer.Exit, typer.Abort):
                raise
            except KeyboardInterrupt:
                say(f"\nInterrupted. {after_interrupt}".rstrip())
                raise typer.Exit(INTERRUPTED) from None
            except Exception as error:
                if kwargs.get("debug"):
                    traceback.print_exc()
                say(f"Error: {describe(error, flags_of(command))}")
                raise typer.Exit(USAGE if isinstance(error, RecipeError) else FAILURE) from error

        return run

    return wrap


def _name_output(given: dict[str, Any]) -> None:
    """Write out what ``OUT`` stands for where it is ``.`` or ``..``: results go beside it too, under its name."""
    out = given.get("out")
    if isinstance(out, Path) and out.name in ("", ".."):
        given["out"] = Path(os.path.abspath(out))


def flags_of(command: Callable[..., object]) -> set[str]:
    """Return the long flags of a command."""
    found: set[str] = set()
    for name, hint in get_type_hints(command, include_extras=True).items():
        options = [part for part in getattr(hint, "__metadata__", ()) if isinstance(part, typer.models.OptionInfo)]
        # in an annotation typer takes the first flag for the default
        texts = [str(text) for option in options for text in (option.default, *(option.param_decls or ()))]
        declared = {flag for text in texts if text.startswith("-") for flag in text.split("/")}
        found |= declared or {"--" + name.replace("_", "-")}
    return found


def _advised(message: str, flags: Container[str]) -> str:
    """Name the flags behind what the library, which knows of no command line, advises."""
    found = [flag for flag, advice in _ADVICE.items() if flag in flags and re.search(advice, message, re.IGNORECASE)]
    for key in dict.fromkeys(re.findall(r"\b(?:try|use|take|or) ([a-z_.]+)=", message, re.IGNORECASE)):
        flag = "--" + key.rpartition(".")[2].replace("_", "-")
        if "." not in key and flag in flags:
            found.append(flag)
        elif "--set" in flags:
            found.append(f"--set {key}=...")
    return f" ({' or '.join(found)})" if found and found[0] not in message else ""


def describe(error: Exception, flags: Container[str] = ()) -> str:
    """Return what went wrong and what to do about it, in one paragraph.

    Args:
        error: what was raised.
        flags: those of the command.

    Example:
        >>> describe(FileNotFoundError(2, "No such file or directory", "a.yaml"))
        'a.yaml: No such file or directory.'
    """
    if isinstance(error, LowdimError):
        return str(error) + ("" if isinstance(error, RecipeError) else _advised(str(error), flags))
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        less = [flag for flag in ("--samples", "--context", "--max-concurrent") if flag in flags]
        plan = "; --dry-run estimates what is needed" if "--dry-run" in flags else ""
        return f"out of memory ({error}). " + (
            f"Lower {' or '.join(less)}{plan}." if less else "Close other programs, or take a smaller model."
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = error.filename or "the output"
        again = "run again with --resume" if "--resume" in flags else "run again"
        return f"the disk is full: {where} could not be written. Free some room, then {again}."
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}." if error.filename else f"{error.strerror}."
    debug = "; --debug shows where it arose" if "--debug" in flags else ""
    return f"{type(error).__name__}: {error}. This is not a mistake lowdim knows{debug}."

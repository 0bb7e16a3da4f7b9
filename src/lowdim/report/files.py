"""What a page is made of: the files of a run, in its directory and beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lowdim.core.errors import CheckpointError
from lowdim.core.files import read_json


def beside(out: Path, ending: str) -> Path:
    """Return the path of a file beside a run's directory.

    Example:
        >>> beside(Path("runs/smol-v1.2"), ".html").as_posix()
        'runs/smol-v1.2.html'
    """
    return out.with_name(out.name + ending)


def sidecar(path: Path, missing: str = "") -> tuple[dict[str, Any], str]:
    """Return the sidecar, or nothing and the reason; that it is absent is no fault, a run may be moved."""
    if not path.exists():
        return {}, ""
    try:
        return read_json(path), ""
    except CheckpointError as error:
        return {}, f"{missing}: {error}"


def result(path: Path, command: str, needs: str = "sentence") -> dict[str, Any]:
    """Return what a command left in a file.

    Args:
        path: of the file.
        command: that writes it.
        needs: a key that it always has.

    Raises:
        CheckpointError: it is damaged, or something else.
    """
    held = read_json(path)
    if needs not in held:
        raise CheckpointError(f"{path} is not what `lowdim {command}` writes, or it is of another version")
    return held


def check_schema(held: Mapping[str, Any], path: Path, schema: int) -> None:
    """Refuse what another version of lowdim wrote.

    Raises:
        CheckpointError: it did.
    """
    if held.get("schema") != schema:
        raise CheckpointError(
            f"{path} has schema {held.get('schema')!r}; this version of lowdim reads {schema}. Update lowdim."
        )


@contextmanager
def whole(file: str) -> Iterator[None]:
    """Tell what a page did not find in a file, or found of a wrong type, as a damaged file.

    Example:
        >>> with whole("sweep.json"):
        ...     {}["runs"]
        Traceback (most recent call last):
        lowdim.core.errors.CheckpointError: sweep.json is damaged: 'runs' is missing or of a wrong type.
    """
    try:
        yield
    except (LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file} is damaged: {error} is missing or of a wrong type.") from error

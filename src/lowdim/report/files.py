"""What a page is made of: the files of a run, in its directory and beside it."""

from __future__ import annotations

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

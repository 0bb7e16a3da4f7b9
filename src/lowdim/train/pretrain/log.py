"""The log of a run: one line of JSON for every step and every evaluation, beside the output; and TensorBoard."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Self

from lowdim.core.errors import RecipeError


def check_tensorboard() -> None:
    """Refuse to log for TensorBoard where it is not installed.

    Raises:
        RecipeError: says what to install.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise RecipeError(
            "tensorboard=true needs the package tensorboard: pip install 'lowdim[tensorboard]', or leave it out; "
            "OUT.log.jsonl holds the same numbers."
        )


class Log:
    """Appends to ``OUT.log.jsonl``; a context manager.

    Args:
        path: the file; None writes nothing.
        tensorboard: a directory for TensorBoard as well.
        step: of the run as it begins or goes on: later lines of an earlier attempt are thrown away, and the points of
            TensorBoard are marked as such, which then shows each once.
    """

    def __init__(self, path: Path | None, tensorboard: Path | None, step: int) -> None:
        self._file: IO[str] | None = None
        self._board: Any = None
        if path is None:
            return
        if path.exists():
            os.truncate(path, _until(path, step) if step else 0)
        self._file = path.open("a", encoding="utf-8")
        if tensorboard is not None:
            from torch.utils.tensorboard import SummaryWriter

            if not step:
                for old in tensorboard.glob("events.*"):
                    old.unlink()
            self._board = SummaryWriter(str(tensorboard), purge_step=step + 1)

    def write(self, line: dict[str, Any]) -> None:
        """Write a line; its numbers go to TensorBoard by their names."""
        if self._file is not None:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        if self._board is not None:
            for name, value in line.items():
                if name != "step":
                    self._board.add_scalar(name, value, line["step"])
            self._board.flush()  # a state that is saved next may be gone on from: what came before it must be there

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()


def read(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a log that are whole: the last one of a killed run may not be."""
    return [line for line, _ in _lines(path)]


def _lines(path: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield the lines with the bytes of each."""
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            yield json.loads(line), len(line)
        except ValueError:
            return


def _until(path: Path, step: int) -> int:
    """Return the bytes of the lines up to a step."""
    return sum(size for line, size in _lines(path) if line["step"] <= step)

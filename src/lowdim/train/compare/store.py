"""A run's directory while it is being written: finished networks, and the state of the one in training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from lowdim.models.disk.writer import write_tensors
from lowdim.runs import tree
from lowdim.runs.directory import Directory

CHECKPOINT, DONE = "checkpoint.safetensors", ".done.safetensors"
KEY = "tree"


class Store:
    """Nested states and networks in the directory of a run, each a file of its own."""

    def __init__(self, directory: Directory) -> None:
        self.directory = directory

    def put(self, name: str, content: Any) -> None:
        """Write a nested state to one file, replacing it in one step."""
        text, tensors = tree.pack(content)
        write_tensors(self.directory, name, tensors, {KEY: text})

    def get(self, name: str) -> Any:
        """Return what `put` wrote, or None if the file is not there."""
        return read(self.directory.partial / name) if self.directory.has(name) else None

    def put_network(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Write a network's tensors."""
        write_tensors(self.directory, name, {key: value.cpu() for key, value in tensors.items()})

    def drop(self, *names: str) -> None:
        """Remove files that a finished run has no use for."""
        for name in names:
            (self.directory.partial / name).unlink(missing_ok=True)


def read(path: Path) -> Any:
    """Return the nested state in a file."""
    with safe_open(path, framework="pt") as file:
        tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tree.unpack(file.metadata()[KEY], tensors)


def saved(partial: Path, latest: str, good: str, only_good: bool) -> Path | None:
    """Return the file of the latest of two states, or of the good one alone; ``None`` if there is none.

    A good state replaces the latest: where both are there, the latest came after it, or the run was killed in between
    and goes on from either to the same bytes.
    """
    there = [partial / name for name in ((good,) if only_good else (latest, good))]
    return next((path for path in there if path.is_file()), None)

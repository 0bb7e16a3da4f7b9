"""A run's directory while it is being written: finished networks, and the state of the one in training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from safetensors import safe_open
from torch import Tensor

from lowdim.core.errors import RecipeError
from lowdim.models.disk.writer import Writer
from lowdim.runs import tree

CHECKPOINT, DONE = "checkpoint.safetensors", ".done.safetensors"
_KEY = "tree"


class Store(Writer):
    """An output directory of a run, which appears when the run is finished; see `lowdim.models.disk.writer.Writer`."""

    def __enter__(self) -> Self:
        return self

    def write_index(self) -> None:
        """Write none: the files are networks of their own, not shards of one."""

    def begin(self, fingerprint: Mapping[str, Any]) -> None:
        """Begin, or go on with, a run of this fingerprint.

        Raises:
            RecipeError: the unfinished run has another one; what differs is named.
        """
        found = self.state.get("fingerprint")
        if found is None:
            self.reset()
            self.state = {"fingerprint": dict(fingerprint)}
            self.save_state()
            return
        wrong = [key for key in fingerprint if found.get(key) != fingerprint[key]]
        if wrong:
            raise RecipeError(
                f"cannot resume: the unfinished run in {self.partial} has another {', '.join(wrong)}. Repeat its "
                "command exactly, or start again with --overwrite."
            )

    def put(self, name: str, content: Any) -> None:
        """Write a nested state to one file, replacing it in one step."""
        text, tensors = tree.pack(content)
        self.write_shard(name, tensors, {_KEY: text})

    def get(self, name: str) -> Any:
        """Return what `put` wrote, or None if the file is not there."""
        return read(self.partial / name) if self.has(name) else None

    def drop(self, *names: str) -> None:
        """Remove files that a finished run has no use for."""
        for name in names:
            (self.partial / name).unlink(missing_ok=True)


def read(path: Path) -> Any:
    """Return the nested state in a file."""
    with safe_open(path, framework="pt") as file:
        tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tree.unpack(file.metadata()[_KEY], tensors)

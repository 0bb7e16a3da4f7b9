"""What several ranks of a recovery share: the text, dealt out among them, and the state that the first one writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lowdim.core.errors import LowdimError
from lowdim.data.batch import Batch
from lowdim.models import ranks
from lowdim.models.disk.writer import Writer
from lowdim.pipeline.recover.blocks import Text
from lowdim.train.compare.store import Store, read, saved

_LATEST, _GOOD, _END = (f".distill-{name}.safetensors" for name in ("latest", "good", "end"))


def own_part(text: Text, sharded: bool) -> Text:
    """Return this rank's sequences of every batch, so that a step sees the same tokens on any number of ranks.

    Args:
        text: of all ranks.
        sharded: whether every rank must take part in every forward, also of held-out text.

    Raises:
        LowdimError: a batch has fewer sequences than there are ranks.
    """
    least = min(map(len, [*text.train, *(text.held if sharded else ())]))
    if least < ranks.size():
        raise LowdimError(
            f"a batch of the text holds {least} sequences, which {ranks.size()} ranks cannot share. Raise "
            "batch_tokens, or give calibration.samples of which every batch has enough."
        )
    return Text(_parts(text.train), [part for part in _parts(text.held) if len(part)])


def _parts(batches: Sequence[Batch]) -> list[Batch]:
    return [batch.share(ranks.rank(), ranks.size()) for batch in batches]


class States:
    """The states of a training in the directory of a run: rank 0 writes, every rank reads.

    There are two: the latest, to go on from, and a good one, saved at certain steps whatever the clock says, to go back
    to. Beside them lies how it ended, from which nothing goes on.

    Args:
        writer: of the run; ``None`` on other ranks.
        partial: the directory that it fills.
    """

    def __init__(self, writer: Writer | None, partial: Path) -> None:
        self._store, self.partial = None if writer is None else Store(writer.directory), partial

    def put(self, content: Any, good: bool = False) -> None:
        """Write a nested state in the place of those before it, a good one in that of both; every rank must call it."""
        self._write(_GOOD if good else _LATEST, content, _LATEST if good else None)

    def end(self, content: Any) -> None:
        """Write how the training ended; every rank must call it."""
        self._write(_END, content)

    def _write(self, name: str, content: Any, stale: str | None = None) -> None:
        if self._store is not None:
            self._store.put(name, content)
            if stale is not None:
                self._store.drop(stale)
        ranks.barrier()

    def get(self, good: bool = False) -> Any:
        """Return what `put` wrote last, or the last good state; None if there is none."""
        return _read(saved(self.partial, _LATEST, _GOOD, good))

    def ended(self) -> Any:
        """Return what `end` wrote, or None."""
        return _read(self.partial / _END)


def _read(file: Path | None) -> Any:
    return read(file) if file is not None and file.is_file() else None

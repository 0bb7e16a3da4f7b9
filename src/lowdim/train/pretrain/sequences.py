"""Sequences cut from tokens on disk, and the batches of every step: a function of the recipe and the step alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lowdim.core.random import derive_seed, generator
from lowdim.data.corpus.cache import Part, check_tokens
from lowdim.data.errors import DataError

IGNORED = -100
WINDOW = 2048
"""Sequences that a streamed text is shuffled within."""


class Micro(NamedTuple):
    """What is computed at once.

    Attributes:
        ids: int64 ``[sequences, tokens]``; what is missing to the longest is filled up with 0.
        targets: the token after each, int64 of the same shape, -100 where it does not count.
        counted: targets that count.
        seed: of what the model draws meanwhile.
    """

    ids: Tensor
    targets: Tensor
    counted: int
    seed: int = 0


class Shuffled:
    """Rows that come in a new order in every pass."""

    def __init__(self) -> None:
        self._pass, self._order = -1, torch.zeros(0, dtype=torch.int64)

    def __len__(self) -> int:
        """Return the number of rows."""
        raise NotImplementedError

    def row(self, place: int, seed: int) -> int:
        """Return the row at a place of the run: every pass has an order of its own."""
        number, within = divmod(place, len(self))
        if number != self._pass:
            source = generator(seed, "pretrain", "order", number)
            self._pass, self._order = number, torch.randperm(len(self), generator=source)
        return int(self._order[within])


class Sequences(Shuffled):
    """The sequences of one side of a text.

    Args:
        part: its tokens.
        length: T, tokens of a sequence; each is the input of T predictions, so that T + 1 are read.
        packed: cut the stream of all documents every T tokens; if not, each document is one, cut after T + 1 tokens.
        whole: keep the last one, which may be shorter; training drops it.

    Raises:
        DataError: there is no sequence.

    Example:
        >>> stream = Part(np.arange(8, dtype=np.uint16), np.array([0, 8]))
        >>> train, judge = (Sequences(stream, 3, True, whole) for whole in (False, True))
        >>> len(train), len(judge), judge.micro([1, 2]).targets.tolist()
        (2, 3, [[4, 5, 6], [7, -100, -100]])
    """

    def __init__(self, part: Part, length: int, packed: bool, whole: bool = False) -> None:
        super().__init__()
        self.part, self.length, self.packed = part, length, packed
        if packed:
            check_tokens(part, 2 if whole else length + 1, "validation" if whole else "training")
            predicted = len(part.ids) - 1
            self._count, self._kept = (-(-predicted // length) if whole else predicted // length), None
        else:
            sizes = np.minimum(np.diff(part.starts), length + 1)
            usable = sizes > (1 if part.first is None else np.maximum(part.first, 1))
            self._kept = np.flatnonzero(usable)
            self._count = len(self._kept)
            if not self._count:
                what = "two tokens" if part.first is None else f"a token of an answer among its first {length + 1}"
                side = "validation" if whole else "training"
                raise DataError(f"no document of the {side} text has {what}. Give other text, or a larger length")

    def __len__(self) -> int:
        """Return the number of sequences."""
        return self._count

    @property
    def passed_over(self) -> int:
        """Documents in which nothing counts."""
        return 0 if self._kept is None else len(self.part.starts) - 1 - self._count

    def micro(self, rows: Sequence[int], seed: int = 0) -> Micro:
        """Return some sequences."""
        spans = [self._span(row) for row in rows]
        width = max(stop - start for start, stop in spans) - 1
        ids = torch.zeros(len(rows), width, dtype=torch.int64)
        targets = torch.full_like(ids, IGNORED)
        for row, (start, stop) in enumerate(spans):
            read = torch.from_numpy(self.part.ids[start:stop].astype(np.int64))
            ids[row, : stop - start - 1], targets[row, : stop - start - 1] = read[:-1], read[1:]
            if self.part.counted is not None:
                own = torch.from_numpy(self.part.counted[start + 1 : stop].copy())
                targets[row, : stop - start - 1].masked_fill_(~own, IGNORED)
        return Micro(ids, targets, int((targets != IGNORED).sum()), seed)

    def _span(self, row: int) -> tuple[int, int]:
        if self._kept is None:
            start = row * self.length
            return start, min(start + self.length + 1, len(self.part.ids))
        start, stop = self.part.starts[self._kept[row]], self.part.starts[self._kept[row] + 1]
        return int(start), int(min(stop, start + self.length + 1))


class Streamed:
    """Sequences of a text that is encoded as it is read, again and again, and never written.

    They are cut from the stream of all documents and shuffled within windows of some thousand, so that what is at a
    place is always the same; to go on from there, what comes before is read again.

    Args:
        documents: starts a pass over the documents, as token ids.
        length: T, tokens of a sequence.

    Example:
        >>> text = Streamed(lambda: iter([[0, 1, 2, 3], [4, 5, 6]]), 2)
        >>> text.micro(range(2)).ids.sort(0).values.tolist()
        [[0, 1], [2, 3]]
    """

    passed_over = 0

    def __init__(self, documents: Callable[[], Iterator[list[int]]], length: int) -> None:
        self.length, self._documents, self._seed = length, documents, 0
        self._begin()

    def _begin(self) -> None:
        self._window, self._rows = -1, torch.zeros(0, 0, dtype=torch.int64)
        self._source = self._read()

    def _read(self) -> Iterator[list[int]]:
        """Yield the sequences of pass after pass."""
        while True:
            rest, found = list[int](), False
            for document in self._documents():
                rest += document
                while len(rest) > self.length:
                    yield rest[: self.length + 1]
                    rest, found = rest[self.length :], True
            if not found:
                raise DataError(f"the training text has no sequence of {self.length + 1} tokens. Give more text")

    def row(self, place: int, seed: int) -> int:
        """Return the place; what is there follows from it and the seed."""
        self._seed = seed
        return place

    def micro(self, rows: Sequence[int], seed: int = 0) -> Micro:
        """Return the sequences at some places; going back means to read anew."""
        found = torch.stack([self._at(row) for row in rows])
        return Micro(found[:, :-1], found[:, 1:], found[:, 1:].numel(), seed)

    def _at(self, place: int) -> Tensor:
        number, within = divmod(place, WINDOW)
        if number < self._window:
            self._begin()
        while self._window < number:
            self._rows, self._window = torch.tensor(list(islice(self._source, WINDOW))), self._window + 1
        order = torch.randperm(WINDOW, generator=generator(self._seed, "pretrain", "window", number))
        return self._rows[order[within]]


class Batches:
    """The batches of a run, from any step on, in a new order for every pass; a pass ends within a step.

    Args:
        sequences: `Sequences`, `Streamed`, or what answers like them: ``row`` and ``micro``.
        batch: sequences of a step, over all ranks.
        parts: micro-batches of a rank in a step.
        rank: of this process.
        ranks: how many there are.
        seed: of the order, and of what the model draws.

    Raises:
        DataError: a step has fewer sequences than there are ranks and parts.
    """

    def __init__(self, sequences: Any, batch: int, parts: int, seed: int, rank: int = 0, ranks: int = 1) -> None:
        if batch < parts * ranks:
            raise DataError(
                f"a step of batch={batch} sequences cannot be shared by {ranks} processes with accumulate={parts}; "
                f"batch must be at least {parts * ranks}"
            )
        self.sequences, self.batch, self.parts, self.seed = sequences, batch, parts, seed
        self.rank, self.ranks = rank, ranks

    def step(self, step: int) -> Iterator[Any]:
        """Yield this rank's micro-batches of a step, counted from 0."""
        rows = [self.sequences.row(place, self.seed) for place in range(step * self.batch, (step + 1) * self.batch)]
        for part, mine in enumerate(np.array_split(np.asarray(rows), self.parts)):
            own = np.array_split(mine, self.ranks)[self.rank].tolist()
            yield self.sequences.micro(own, derive_seed(self.seed, "pretrain", "draws", step, part, self.rank))

    def between(self, step: int, steps: int) -> Iterator[Any]:
        """Yield the micro-batches of the steps from one on."""
        for each in range(step, steps):
            yield from self.step(each)

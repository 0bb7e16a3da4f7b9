"""Labelled samples with their names, whatever they came from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lowdim.core.lazy import torch
from lowdim.data import classification, topics
from lowdim.data.classification import Dataset
from lowdim.data.errors import DataError
from lowdim.data.raw import Split, moments


@dataclass(frozen=True)
class Columns:
    """Where a table or a data set object holds what.

    Attributes:
        text: column of the texts.
        image: column of the pictures, of a data set object alone.
        label: column of the classes.
        id: column of the samples' names; None numbers them from 1.
    """

    text: str = "text"
    image: str = "image"
    label: str = "label"
    id: str | None = None


@dataclass(frozen=True, eq=False)
class Source:
    """Labelled samples as they can be shown to people.

    Attributes:
        name: of the whole.
        kind: "image", "table" or "text".
        x: pictures uint8 [samples, 1 or 3, height, width], numbers [samples, columns], or one text each.
        y: classes, int64 [samples].
        classes: the classes' names.
        names: of the samples, each once.
        skipped: names of samples that could not be read and were left out.
        cut: these samples as a built-in set cuts them, with its validation and test part; None for all others.
    """

    name: str
    kind: classification.Kind
    x: torch.Tensor | Sequence[str]
    y: torch.Tensor
    classes: tuple[str, ...]
    names: tuple[str, ...]
    skipped: tuple[str, ...] = ()
    cut: Dataset | None = None

    def __post_init__(self) -> None:
        if not len(self.y):
            raise DataError(f"{self.name} holds no samples")
        if len(self.classes) < 2:
            raise DataError(f"{self.name} has one class alone, {self.classes[0]!r}: there is nothing to tell apart")
        name, count = Counter(self.names).most_common(1)[0]
        if count > 1:
            raise DataError(f"{count} samples of {self.name} are called {name!r}. Give each a name of its own.")

    def dataset(self) -> Dataset:
        """Return all samples as what networks are trained on, in the form of `lowdim.data.classification.cut`."""
        if self.cut is not None:
            return self.cut
        if self.kind == "text":
            texts = [str(text) for text in self.x]
            words = topics.vocabulary(texts)
            return self.of(topics.encode(texts, words), "text", len(words) + 2)
        assert isinstance(self.x, torch.Tensor)
        mean, deviation = moments(self.x, self.kind)
        return self.of((self.x.float() - mean) / deviation, self.kind)

    def of(self, x: torch.Tensor, kind: classification.Kind, vocabulary: int = 0) -> Dataset:
        """Return a data set of these samples in another form, without validation or test part."""
        none = Split(x[:0], self.y[:0])
        return Dataset(self.name, kind, Split(x, self.y), none, none, self.classes, vocabulary)


def encoded(labels: Sequence[Any], where: str, what: str = "class") -> tuple[torch.Tensor, tuple[str, ...]]:
    """Return classes int64 [samples] and their names: in order of the names, as numbers where all are.

    Example:
        >>> encoded(["b", "a", "b"], "x")
        (tensor([1, 0, 1]), ('a', 'b'))
        >>> encoded([10, 9, 10], "x")
        (tensor([1, 0, 1]), ('9', '10'))
    """
    texts = ["" if label is None else str(label).strip() for label in labels]
    empty = [place for place, text in enumerate(texts, start=1) if not text]
    if empty:
        raise DataError(
            f"{where}: {len(empty)} samples have no {what}, the first is sample {empty[0]}. Fill or drop them."
        )
    found = set(texts)
    numbers = all(text.lstrip("-").isdigit() for text in found)
    classes = tuple(sorted(found, key=lambda text: (int(text), text)) if numbers else sorted(found))
    place = {name: number for number, name in enumerate(classes)}
    return torch.tensor([place[text] for text in texts], dtype=torch.int64), classes

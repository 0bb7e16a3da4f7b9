"""Labelled data for training small networks: cut into train, validation and test once and for all.

Validation is cut from the training examples by a seeded permutation; the test examples are the ones their authors set
aside, or, where nobody did, a fifth that is the same for every seed. Nothing is chosen on them.
"""

from __future__ import annotations

import hashlib
import importlib
from dataclasses import dataclass
from typing import Literal

from lowdim.core.errors import suggest
from lowdim.core.lazy import torch
from lowdim.core.random import generator
from lowdim.data import topics
from lowdim.data.errors import DataError
from lowdim.data.raw import Raw, Split

Kind = Literal["image", "table", "text"]
_TEST_SHARE = 0.2


@dataclass(frozen=True)
class Known:
    """A data set that can be asked for by name; ``target`` is the function that reads it."""

    name: str
    kind: Kind
    target: str
    about: str


SETS: dict[str, Known] = {
    known.name: known
    for known in (
        Known(
            "fashion-mnist",
            "image",
            "lowdim.data.vision:fashion_mnist",
            "clothes, 28x28 grey, 60,000 + 10,000, 10 classes",
        ),
        Known("mnist-5k", "image", "lowdim.data.vision:mnist_5k", "handwritten digits, 28x28 grey, 5,000, 10 classes"),
        Known("digits", "image", "lowdim.data.vision:digits", "handwritten digits, 8x8 grey, 1,797, 10 classes"),
        Known("breast-cancer", "table", "lowdim.data.tabular:breast_cancer", "569 tumours, 30 numbers, 2 classes"),
        Known("wine", "table", "lowdim.data.tabular:wine", "178 wines, 13 numbers, 3 classes"),
        Known(
            "wiki-topics",
            "text",
            "lowdim.data.topics:wiki_topics",
            "paragraphs of 20 Wikipedia articles, 2,141, 20 classes",
        ),
    )
}


@dataclass(frozen=True)
class Dataset:
    """Data ready to train on.

    Attributes:
        name: what it was asked for by.
        kind: "image" (float [channels, height, width]), "table" (float [numbers]) or "text" (int64 [words], 0 behind
            the end, 1 for a word that training does not know).
        train: what weights are learnt from.
        validation: what anything is chosen on.
        test: what is measured once, at the end.
        classes: the classes' names.
        vocabulary: number of word ids of a text, 0 for anything else.
    """

    name: str
    kind: Kind
    train: Split
    validation: Split
    test: Split
    classes: tuple[str, ...]
    vocabulary: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one example."""
        return tuple(self.train.x.shape[1:])

    def fingerprint(self) -> str:
        """Return the SHA-256 of every example and class in their order."""
        digest = hashlib.sha256(repr((self.name, self.classes, self.shape)).encode())
        for split in (self.train, self.validation, self.test):
            for tensor in split:
                digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()


def names() -> list[str]:
    """Return the names of the data sets.

    Example:
        >>> names()
        ['fashion-mnist', 'mnist-5k', 'digits', 'breast-cancer', 'wine', 'wiki-topics']
    """
    return list(SETS)


def find(name: str) -> Known:
    """Return what is known of a data set without reading it.

    Example:
        >>> find("digits").kind
        'image'
    """
    if name not in SETS:
        raise DataError(f"unknown data {name!r}. {suggest(name, SETS)}")
    return SETS[name]


def load(name: str, *, validation: float = 0.1, limit: int | None = None, seed: int = 0) -> Dataset:
    """Read a data set, fetching it on first use, and cut it.

    Args:
        name: one of `names`.
        validation: share of the training examples that is set aside for choosing, in (0, 1).
        limit: training examples used at most, the first of the same permutation; validation and test stay whole.
        seed: of the permutation that cuts validation; test does not depend on it.

    Raises:
        DataError: an unknown name, a share outside (0, 1), or fewer examples than classes left to train on.
        AssetError: the data cannot be fetched.
    """
    known = find(name)
    if not 0 < validation < 1:
        raise DataError(f"validation must be a share in (0, 1), got {validation}. Usual is 0.1.")
    if limit is not None and limit < 1:
        raise DataError(f"limit must be at least 1, got {limit}. Leave it out for all training examples.")
    module, _, function = known.target.partition(":")
    raw: Raw = getattr(importlib.import_module(module), function)()
    return cut(known, raw, validation=validation, limit=limit, seed=seed)


def cut(known: Known, raw: Raw, *, validation: float, limit: int | None, seed: int) -> Dataset:
    """Cut what a reader returned into train, validation and test, and bring it to the form that networks take.

    Numbers are brought to mean 0 and deviation 1, one mean for all pixels of an image and one per column of a table;
    words become ids, the most frequent first. Both are taken from the training examples alone.
    """
    order = _order(len(raw.y), 0, "test", known.name) if raw.test is None else list(range(len(raw.y)))
    held = round(_TEST_SHARE * len(order)) if raw.test is None else 0
    test, rest = order[:held], order[held:]
    shuffled = [rest[i] for i in _order(len(rest), seed, "validation", known.name)]
    chosen = max(1, round(validation * len(rest)))
    train = shuffled[chosen:][:limit]
    if len(train) < len(raw.classes):
        raise DataError(
            f"{known.name} has {len(raw.classes)} classes and would keep {len(train)} examples to train on. "
            "Raise limit, or lower validation."
        )
    if known.kind == "text":
        return _text(known, raw, train, shuffled[:chosen], test)
    parts = [_take(raw, rows) for rows in (train, shuffled[:chosen], test)]
    if raw.test is not None:
        parts[2] = Split(raw.test.x.float(), raw.test.y)
    dims = None if known.kind == "image" else 0
    mean, deviation = parts[0].x.mean(dims), parts[0].x.std(dims).clamp_min(1e-6)
    first, second, third = (Split((part.x - mean) / deviation, part.y) for part in parts)
    return Dataset(known.name, known.kind, first, second, third, raw.classes)


def _order(count: int, seed: int, purpose: str, name: str) -> list[int]:
    order: list[int] = torch.randperm(count, generator=generator(seed, "data", purpose, name)).tolist()
    return order


def _take(raw: Raw, rows: list[int]) -> Split:
    assert isinstance(raw.x, torch.Tensor)
    index = torch.tensor(rows, dtype=torch.int64)
    return Split(raw.x[index].float(), raw.y[index])


def _text(known: Known, raw: Raw, *parts: list[int]) -> Dataset:
    texts = list(raw.x)
    words = topics.vocabulary(str(texts[row]) for row in parts[0])
    first, second, third = (
        Split(topics.encode([str(texts[row]) for row in rows], words), raw.y[torch.tensor(rows, dtype=torch.int64)])
        for rows in parts
    )
    return Dataset(known.name, known.kind, first, second, third, raw.classes, len(words) + 2)

"""Labelled data for training small networks: cut into train, validation and test once and for all.

Validation is cut from the training examples by a seeded permutation; the test examples are the ones their authors set
aside, or, where nobody did, a fifth that is the same for every seed. Nothing is chosen on them.
"""

from __future__ import annotations

import hashlib
import importlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path, PurePath
from typing import Any, Literal, NamedTuple

from lowdim.core.errors import suggest
from lowdim.core.lazy import torch
from lowdim.core.random import generator
from lowdim.data import topics
from lowdim.data.errors import DataError
from lowdim.data.planted.settings import made_of
from lowdim.data.raw import Raw, Split, Texts, moments

Kind = Literal["image", "table", "text"]
TABLES = (".csv", ".json", ".jsonl", ".ndjson")
_TEST_SHARE = 0.2
_OWN = {"image": "lowdim.data.labelled.settings:Pictures", "text": "lowdim.data.labelled.settings:Table"}


@dataclass(frozen=True)
class Known:
    """A data set that can be asked for by name; ``target`` is the function that reads it.

    Where ``takes`` names a class of settings, the target is given these; where ``cues`` are known of every sample, laid
    over the set ``base`` or labelled by its authors, it returns a `lowdim.data.planted.sets.Planted`.
    """

    name: str
    kind: Kind
    target: str
    about: str
    base: str = ""
    cues: tuple[str, ...] = ()
    takes: str = ""

    @property
    def key(self) -> str:
        """What its cut is drawn by: its name, of the user's own samples that of the folder or file."""
        return PurePath(self.name).name


def _planted(name: str, base: str, *cues: str) -> Known:
    kind: Kind = "text" if "word" in cues else "image"
    about = f"{base} with a planted {' and a '.join(cues)}"
    takes = "lowdim.data.planted.settings:Planting"
    return Known(name, kind, "lowdim.data.planted.sets:planted", about, base, cues, takes)


def _pictures(name: str, target: str, takes: str, about: str, *cues: str) -> Known:
    here = "lowdim.data.grouped"
    return Known(name, "image", f"{here}.{target}", about, "", cues, f"{here}.settings:{takes}")


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
        Known(
            "20-newsgroups",
            "text",
            "lowdim.data.topics:newsgroups",
            "letters to 20 newsgroups, 11,293 + 7,528, 20 classes",
        ),
        Known("boolq", "text", "lowdim.data.topics:boolq", "yes/no questions about a paragraph, 3,270, 2 classes"),
        *(
            _planted(f"{word}-{base}", base, *cues)
            for base in ("fashion-mnist", "digits")
            for word, *cues in (
                ("coloured", "colour"),
                ("textured", "texture"),
                ("coloured-textured", "colour", "texture"),
            )
        ),
        *(_planted(f"cued-{base}", base, "word") for base in ("wiki-topics", "20-newsgroups", "boolq")),
        Known(
            "corrupted-fashion-mnist",
            "image",
            "lowdim.data.corrupted.sets:corrupted",
            "Fashion-MNIST with one of fifteen corruptions",
            "fashion-mnist",
            takes="lowdim.data.corrupted.sets:Corruption",
        ),
        _pictures("emoji-people", "emoji:people", "People", "women and men as emoji, 730 pictures, 2 classes", "tone"),
        _pictures("celeba", "celeba:celeba", "Attributes", "faces, from a folder, 2 classes", "attribute"),
        _pictures(
            "urbancars",
            "urbancars:urbancars",
            "Folder",
            "cars, from a folder, 2 classes, two biases",
            *("background", "object"),
        ),
        _pictures("bar", "bar:bar", "Folder", "actions, from a folder, 6 classes, bias not labelled"),
        _pictures("cmnist", "percent:percent", "Percent", "coloured digits, from a folder, 10 classes", "colour"),
        _pictures("bffhq", "percent:percent", "Percent", "faces, from a folder, 2 classes", "gender"),
        _pictures(
            "corrupted-cifar-10",
            "percent:percent",
            "Percent",
            "CIFAR-10 with a corruption for each class, from a folder",
            "corruption",
        ),
        _pictures(
            "cifar-10-c", "cifar10c:cifar10c", "Corrupted", "CIFAR-10 and its corrupted test part, from a folder"
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
        rows: which of the reader's examples each of ``train`` is.
    """

    name: str
    kind: Kind
    train: Split
    validation: Split
    test: Split
    classes: tuple[str, ...]
    vocabulary: int = 0
    rows: tuple[int, ...] = ()

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
        >>> names()  # doctest: +ELLIPSIS
        ['fashion-mnist', 'mnist-5k', 'digits', 'breast-cancer', 'wine', 'wiki-topics', ...]
    """
    return list(SETS)


def find(name: str) -> Known:
    """Return what is known of a data set without reading it; a path is that of the user's own samples.

    Raises:
        DataError: there is no set of this name, and it is no path.

    Example:
        >>> find("digits").kind
        'image'
    """
    if name in SETS:
        return SETS[name]
    if PurePath(name).suffix.lower() in TABLES:
        return Known(name, "text", "lowdim.data.labelled.own:texts", "texts of yours", takes=_OWN["text"])
    if len(PurePath(name).parts) > 1 or name.endswith(("/", os.sep)) or Path(name).expanduser().is_dir():
        return Known(name, "image", "lowdim.data.labelled.own:pictures", "pictures of yours", takes=_OWN["image"])
    raise DataError(
        f"unknown data {name!r}: no built-in set, no folder, and no {', '.join(TABLES)}. {suggest(name, SETS)}"
    )


class Cut(NamedTuple):
    """Which of a reader's examples become which part; ``test`` is None where the authors set theirs aside."""

    train: list[int]
    validation: list[int]
    test: list[int] | None


def load(
    name: str,
    *,
    validation: float = 0.1,
    limit: int | None = None,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
) -> Dataset:
    """Read a data set, fetching it on first use, and cut it.

    Args:
        name: one of `names`, a folder with a folder of pictures for each class, or a CSV or JSON lines file of texts.
        validation: share of the training examples that is set aside for choosing, in (0, 1).
        limit: training examples used at most, the first of the same permutation; validation and test stay whole.
        seed: of the permutation that cuts validation; test does not depend on it.
        settings: of a set that takes some: the fields of `lowdim.data.planted.settings.Planting`, or of one of the
            classes in `lowdim.data.grouped.settings`.

    Raises:
        DataError: an unknown name, a share outside (0, 1), fewer examples than classes left to train on, or settings
            for a set that takes none.
        AssetError: the data cannot be fetched.
    """
    known = find(name)
    check_cut(validation, limit)
    return cut(known, read(known, settings), validation=validation, limit=limit, seed=seed)


def check_cut(validation: float, limit: int | None) -> None:
    """Refuse a share or a number of examples that no set can be cut by.

    Raises:
        DataError: see `load`.
    """
    if not 0 < validation < 1:
        raise DataError(f"validation must be a share in (0, 1), got {validation}. Usual is 0.1.")
    if limit is not None and limit < 1:
        raise DataError(f"limit must be at least 1, got {limit}. Leave it out for all training examples.")


def setting_names() -> list[str]:
    """Return every setting that some set takes.

    Example:
        >>> "conflicting" in setting_names()
        True
    """
    places = [*(known.takes for known in SETS.values() if known.takes), *_OWN.values()]
    return list(dict.fromkeys(each.name for takes in dict.fromkeys(places) for each in fields(_class(takes))))


def settings_of(name: str) -> list[str]:
    """Return the settings that a set takes.

    Example:
        >>> "size" in settings_of("celeba"), settings_of("digits")
        (True, [])
    """
    takes = find(name).takes
    return [each.name for each in fields(_class(takes))] if takes else []


def check_settings(name: str, settings: Mapping[str, Any] | None) -> Any:
    """Return the settings object that a data set is read with, or None; nothing is read.

    Raises:
        DataError: the set takes none.
        RecipeError: one is unknown, out of its range, or changes nothing.
    """
    known = find(name)
    if not known.takes:
        if settings:
            able = ", ".join(each.name for each in SETS.values() if each.takes)
            raise DataError(f"data {name!r} takes no settings, got {', '.join(settings)}. Sets that do: {able}.")
        return None
    how = made_of(_class(known.takes), settings)
    if known.base and known.cues:
        how.check_cues(known.name, len(known.cues))
    return how


def _class(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


def read_all(known: Known, settings: Mapping[str, Any] | None = None) -> Any:
    """Return what the set's reader returns, fetching it on first use: a `Raw`, or one with the truth about its cues."""
    how = check_settings(known.name, settings)
    module, _, function = known.target.partition(":")
    reader = getattr(importlib.import_module(module), function)
    return reader() if how is None else reader(known, how)


def read(known: Known, settings: Mapping[str, Any] | None = None) -> Raw:
    """Return all that a data set holds, not yet cut, fetching it on first use."""
    found = read_all(known, settings)
    raw: Raw = found.raw if known.cues else found
    return raw


def divide(known: Known, raw: Raw, *, validation: float, limit: int | None, seed: int) -> Cut:
    """Return which examples become which part.

    Raises:
        DataError: fewer examples than classes would be left to train on.
    """
    count = len(raw.y)
    order = _order(count, 0, "test", known.key) if raw.test is None else list(range(count))
    held = round(_TEST_SHARE * count) if raw.test is None else 0
    test, rest = order[:held], order[held:]
    chosen = max(1, round(validation * len(rest)))
    if raw.held:  # the authors' own, the last ones
        assert raw.test is not None
        rest, chosen = order[: count - raw.held], 0
    shuffled = [rest[i] for i in _order(len(rest), seed, "validation", known.key)]
    train = shuffled[chosen:][:limit]
    if len(train) < len(raw.classes):
        raise DataError(
            f"{known.name} has {len(raw.classes)} classes and would keep {len(train)} examples to train on. "
            "Raise limit, or lower validation."
        )
    return Cut(train, order[count - raw.held :] if raw.held else shuffled[:chosen], test if raw.test is None else None)


def cut(known: Known, raw: Raw, *, validation: float, limit: int | None, seed: int) -> Dataset:
    """Cut what a reader returned into train, validation and test: the `parts` that `divide` names."""
    return parts(known, raw, divide(known, raw, validation=validation, limit=limit, seed=seed))


def parts(known: Known, raw: Raw, rows: Cut) -> Dataset:
    """Return the parts of what a reader returned, in the form that networks take.

    Numbers are brought to mean 0 and deviation 1, one mean for all pixels of an image and one per column of a table;
    words become ids, the most frequent first. Both are taken from the training examples alone.
    """
    if known.kind == "text":
        return _text(known, raw, rows)
    taken = [_take(raw, part) for part in (rows.train, rows.validation, rows.test or [])]
    if raw.test is not None:
        assert isinstance(raw.test, Split)
        taken[2] = Split(raw.test.x.float(), raw.test.y)
    mean, deviation = moments(taken[0].x, known.kind)
    first, second, third = (Split((part.x - mean) / deviation, part.y) for part in taken)
    return Dataset(known.name, known.kind, first, second, third, raw.classes, rows=tuple(rows.train))


def _order(count: int, seed: int, purpose: str, name: str) -> list[int]:
    order: list[int] = torch.randperm(count, generator=generator(seed, "data", purpose, name)).tolist()
    return order


def _take(raw: Raw, rows: list[int]) -> Split:
    assert isinstance(raw.x, torch.Tensor)
    index = torch.tensor(rows, dtype=torch.int64)
    return Split(raw.x[index].float(), raw.y[index])


def _text(known: Known, raw: Raw, rows: Cut) -> Dataset:
    texts = list(raw.x)
    taken = [
        Texts([str(texts[row]) for row in part], raw.y[list(part)])
        for part in (rows.train, rows.validation, rows.test or [])
    ]
    if raw.test is not None:
        taken[2] = Texts([str(text) for text in raw.test.x], raw.test.y)
    words = topics.vocabulary(taken[0].x)
    first, second, third = (Split(topics.encode(part.x, words), part.y) for part in taken)
    return Dataset(known.name, known.kind, first, second, third, raw.classes, len(words) + 2, tuple(rows.train))

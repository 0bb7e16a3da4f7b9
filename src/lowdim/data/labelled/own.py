"""The user's own samples as a data set that is cut and trained on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lowdim.core.lazy import torch
from lowdim.data import classification
from lowdim.data.classification import Dataset, Known
from lowdim.data.errors import DataError
from lowdim.data.labelled import folder, rows
from lowdim.data.labelled.settings import Pictures, Table
from lowdim.data.labelled.source import Columns, Source, encoded
from lowdim.data.raw import Raw
from lowdim.data.select.groups import Groups

SIDECARS = ("metadata.csv", "metadata.jsonl")
"""What tells more of the pictures of a folder, in the manner of Hugging Face; ``file_name`` is a path in the folder."""


def pictures(known: Known, how: Pictures) -> Raw:
    """Read a folder with a folder of pictures for each class, uint8 [3, size, size]; nobody set a test part aside."""
    return raw(folder.read(_home(known), how.size, how.unreadable == "skip"))


def texts(known: Known, how: Table) -> Raw:
    """Read a CSV or JSON lines file of texts; nobody set a test part aside."""
    return raw(rows.from_file(_home(known), Columns(text=how.text, label=how.label)))


def grouped(
    name: str, column: str, settings: Mapping[str, Any], **cut: Any
) -> tuple[Dataset, dict[str, tuple[Groups, torch.Tensor]]]:
    """Return what `lowdim.data.classification.load` does, and the groups of each part: a class and a column's value.

    The column is of the table, or of one of `SIDECARS` in the folder. A sample conflicts, bool [samples], where its
    value is not the most frequent of its class in the training part, of equals the first by name.

    Raises:
        DataError: there is no such column, a sample has no value in it, or its values hardly repeat.
    """
    known = classification.find(name)
    path, told = _column(known, column)
    found = classification.read(known, settings)
    lost = [each for each in found.names if each not in told]
    if lost:
        raise DataError(
            f"{len(lost)} of {len(found.names)} pictures have no row in {path}, the first is {lost[0]}. Add them."
        )
    value, values = encoded([told[each] for each in found.names], str(path), column)
    if 2 * len(values) > len(value):
        raise DataError(
            f"column {column!r} of {path} has {len(values)} values for {len(value)} samples, which makes no groups. "
            "Name one whose values repeat."
        )
    index = len(values) * found.y + value
    rows = classification.divide(known, found, **cut)
    counts = torch.bincount(index[rows.train], minlength=len(found.classes) * len(values))
    conflicting = value != counts.reshape(-1, len(values)).argmax(1)[found.y]
    names = tuple(f"{label}, {column} {each}" for label in found.classes for each in values)
    parts = {part: (Groups(index[of], names), conflicting[of]) for part, of in rows._asdict().items()}
    return classification.parts(known, found, rows), parts


def _column(known: Known, column: str) -> tuple[Path, dict[str, Any]]:
    """Return a table, and what its column says of each sample by name."""
    home = _home(known)
    if known.kind == "text":
        return home, rows.column(home, column)
    path = next((path for name in SIDECARS if (path := home / name).is_file()), None)
    if path is None:
        raise DataError(
            f"groups {column!r} is to be a column of {' or '.join(SIDECARS)}, and {home} has neither. Write one there "
            f"with a row for each picture: file_name, its path in the folder, and {column}."
        )
    return path, rows.column(path, column, "file_name")


def training(
    known: Known, raw: Raw, validation: float, limit: int | None, seed: int, skipped: tuple[str, ...] = ()
) -> Source:
    """Return the samples that are trained on where `lowdim.data.classification.load` reads the same ones.

    Raises:
        DataError: see `lowdim.data.classification.load`.
    """
    data = classification.cut(known, raw, validation=validation, limit=limit, seed=seed)
    rows = list(data.rows)
    x = raw.x[rows] if isinstance(raw.x, torch.Tensor) else [str(raw.x[row]) for row in rows]
    names = tuple(raw.names[row] if raw.names else str(row) for row in rows)
    return Source(known.name, known.kind, x, data.train.y, data.classes, names, skipped, data)


def _home(known: Known) -> Path:
    path = Path(known.name).expanduser()
    if not (path.is_dir() if known.kind == "image" else path.is_file()):
        what = "folder of pictures" if known.kind == "image" else "table of texts"
        raise DataError(f"data {known.name!r}: there is no such {what}. Correct the path, or name a built-in set.")
    return path


def raw(source: Source) -> Raw:
    """Return the samples of a source as a reader does; nobody set a test part aside."""
    return Raw(source.x, source.y, source.classes, names=source.names)

"""The user's own samples as a data set that is cut and trained on."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

from lowdim.core.lazy import torch
from lowdim.data import classification
from lowdim.data.classification import Known
from lowdim.data.errors import DataError
from lowdim.data.labelled import folder, rows
from lowdim.data.labelled.settings import Pictures, Table
from lowdim.data.labelled.source import Columns, Source
from lowdim.data.raw import Raw


def pictures(known: Known, how: Pictures) -> Raw:
    """Read a folder with a folder of pictures for each class, uint8 [3, size, size]; nobody set a test part aside."""
    found = folder.read(_home(known), how.size, how.unreadable == "skip")
    if found.skipped:
        warnings.warn(f"{len(found.skipped)} pictures in {known.name} cannot be read; they are left out", stacklevel=2)
    return _raw(found)


def texts(known: Known, how: Table) -> Raw:
    """Read a CSV or JSON lines file of texts; nobody set a test part aside."""
    return _raw(rows.from_file(_home(known), Columns(text=how.text, label=how.label)))


def training(source: Source, *, validation: float, limit: int | None, seed: int) -> Source:
    """Return the samples of a source that are trained on where `lowdim.data.classification.load` reads the same ones.

    Raises:
        DataError: see `lowdim.data.classification.load`.
    """
    classification.check_cut(validation, limit)
    known = Known(source.name, source.kind, "", "")
    data = classification.cut(known, _raw(source), validation=validation, limit=limit, seed=seed)
    x = source.x[list(data.rows)] if isinstance(source.x, torch.Tensor) else [source.x[row] for row in data.rows]
    return replace(source, x=x, y=data.train.y, names=tuple(source.names[row] for row in data.rows), cut=data)


def _home(known: Known) -> Path:
    path = Path(known.name).expanduser()
    if not (path.is_dir() if known.kind == "image" else path.is_file()):
        what = "folder of pictures" if known.kind == "image" else "table of texts"
        raise DataError(f"data {known.name!r}: there is no such {what}. Correct the path, or name a built-in set.")
    return path


def _raw(source: Source) -> Raw:
    return Raw(source.x, source.y, source.classes)

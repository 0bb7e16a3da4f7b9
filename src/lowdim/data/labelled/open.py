"""Labelled samples by name, by path, or as an object."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lowdim.core.errors import suggest
from lowdim.core.lazy import torch
from lowdim.data import classification
from lowdim.data.errors import DataError
from lowdim.data.labelled import folder, rows
from lowdim.data.labelled.source import Columns, Source

TABLES = (".csv", ".json", ".jsonl", ".ndjson")


def builtin(
    name: str,
    *,
    validation: float = 0.1,
    limit: int | None = None,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
) -> Source:
    """Return the training samples of a built-in set as `lowdim.data.classification.load` cuts them; names are rows.

    Raises:
        DataError: an unknown name, or one of the other arguments is wrong.
        AssetError: the data cannot be fetched.
    """
    known = classification.find(name)
    raw = classification.read(known, settings)
    data = classification.cut(known, raw, validation=validation, limit=limit, seed=seed)
    rows = list(data.rows)
    x = raw.x[rows] if isinstance(raw.x, torch.Tensor) else [str(raw.x[row]) for row in rows]
    return Source(name, known.kind, x, data.train.y, data.classes, tuple(map(str, rows)), cut=data)


def open_source(
    data: Any,
    *,
    columns: Columns | None = None,
    size: int = 64,
    skip: bool = False,
    limit: int | None = None,
    validation: float = 0.1,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
) -> Source:
    """Read labelled samples.

    Args:
        data: a built-in name, a folder with a folder of pictures for each class, a CSV or JSON lines file of texts, a
            data set object of Hugging Face, or a `Source`.
        columns: of a table or data set object.
        size: pixels along a side of pictures.
        skip: leave out pictures that cannot be read, instead of refusing all.
        limit: samples at most; of a built-in set see `lowdim.data.classification.load`, of others the first.
        validation: of a built-in set, likewise ``seed`` and ``settings``.
        seed: of the permutation that cuts validation.
        settings: of a planted set.

    Raises:
        DataError: there is nothing of this name, or what there is cannot be read; says what would do.
    """
    columns = columns or Columns()
    if isinstance(data, Source):
        return data
    if limit is not None and limit < 1:
        raise DataError(f"limit must be at least 1, got {limit}. Leave it out for all samples.")
    if hasattr(data, "column_names") and hasattr(data, "features"):
        return rows.from_object(data, columns, size, limit)
    if not isinstance(data, str | Path):
        raise DataError(
            f"data must be a name, a path, or a data set object of Hugging Face; got {type(data).__name__}. Of several "
            "splits give one, such as dataset['train']."
        )
    if isinstance(data, str) and data in classification.SETS:
        return builtin(data, validation=validation, limit=limit, seed=seed, settings=settings)
    path = Path(data).expanduser()
    if settings:
        raise DataError(f"settings are of built-in sets alone, and {str(data)!r} is none. Leave them out.")
    if path.is_dir():
        return folder.read(path, size, skip, limit)
    if path.is_file():
        if path.suffix.lower() in TABLES:
            return rows.from_file(path, columns, limit)
        raise DataError(f"{path} is none of {', '.join(TABLES)}. Texts come in CSV or JSON lines, pictures in folders.")
    raise DataError(
        f"there is no file, folder or built-in set {str(data)!r}. {suggest(str(data), classification.SETS)}"
    )

"""A folder of pictures: a folder in it for each class."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from lowdim.core.lazy import torch
from lowdim.data.errors import DataError
from lowdim.data.grouped.pictures import ENDINGS
from lowdim.data.labelled.pictures import gathered
from lowdim.data.labelled.source import Source


def read(home: Path, size: int, skip: bool, limit: int | None = None) -> Source:
    """Read the pictures below each folder of ``home``, whose name is their class, cut square and scaled.

    Args:
        home: hidden folders and folders without pictures in it are passed over.
        size: pixels along a side.
        skip: leave out what cannot be read.
        limit: of each class at most an equal share of so many, the first by name.

    Raises:
        DataError: there are fewer than two folders with pictures, or one cannot be read; all are counted, five named.
    """
    folders = sorted(path for path in home.iterdir() if path.is_dir() and not path.name.startswith("."))
    classes = {path.name: found for path in folders if (found := _below(path))}
    if len(classes) < 2:
        raise DataError(
            f"{home} has {len(classes)} folders with pictures ({', '.join(ENDINGS)}), and at least two are needed: one "
            "for each class, with its name."
        )
    most = None if limit is None else max(1, limit // len(classes))
    taken = [(number, file) for number, files in enumerate(classes.values()) for file in files[:most]]
    y = torch.tensor([number for number, _ in taken], dtype=torch.int64)
    named = [(file.relative_to(home).as_posix(), partial(Path, file)) for _, file in taken]
    return gathered(home.name, str(home), named, y, tuple(classes), size=size, skip=skip)


def _below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS and path.is_file())

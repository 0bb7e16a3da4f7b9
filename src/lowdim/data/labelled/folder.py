"""A folder of pictures: a folder in it for each class."""

from __future__ import annotations

from pathlib import Path

from lowdim.core.lazy import torch
from lowdim.data.errors import DataError
from lowdim.data.grouped.pictures import ENDINGS, square
from lowdim.data.labelled.source import Source

_NAMED = 5


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
    made, labels, names, wrong = [], [], [], []
    total = 0
    for number, (_, files) in enumerate(classes.items()):
        for file in files[:most]:
            total += 1
            name = file.relative_to(home).as_posix()
            try:
                made.append(square(file, size))
            except (OSError, ValueError, SyntaxError):  # what Pillow raises for damaged files
                wrong.append(name)
                continue
            labels.append(number)
            names.append(name)
    if wrong and (not skip or not made):
        more = f" and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
        raise DataError(
            f"{len(wrong)} of {total} pictures in {home} cannot be read: {', '.join(wrong[:_NAMED])}{more}. Replace or "
            "remove them, or leave them out with --skip-unreadable."
        )
    y = torch.tensor(labels, dtype=torch.int64)
    lost = [name for number, name in enumerate(classes) if number not in labels]
    if lost:
        raise DataError(f"no picture of class {lost[0]!r} in {home} can be read. Replace them, or remove that folder.")
    return Source(home.name, "image", torch.stack(made), y, tuple(classes), tuple(names), tuple(wrong))


def _below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS and path.is_file())

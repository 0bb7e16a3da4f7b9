"""Pictures with their classes and names, whatever they came from."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

from lowdim.core.lazy import torch
from lowdim.data.errors import DataError
from lowdim.data.grouped.pictures import squares
from lowdim.data.labelled.source import Source


def gathered(
    name: str,
    where: str,
    files: Sequence[tuple[str, Callable[[], Any]]],
    y: torch.Tensor,
    classes: tuple[str, ...],
    *,
    size: int,
    skip: bool,
) -> Source:
    """Return pictures cut square and scaled, with those left out that cannot be read.

    Args:
        name: of the whole.
        where: it lies, for messages.
        files: for each picture its name, and what returns a source of `lowdim.data.grouped.pictures.square`.
        y: the classes, int64 [pictures].
        classes: their names.
        size: pixels along a side.
        skip: leave out what cannot be read.

    Raises:
        DataError: there is no picture, one cannot be read, or none of a class can; all are counted, five named.
    """
    if not files:
        raise DataError(f"{where} holds no samples")
    made, kept, said = squares(files, size)
    if said and (not skip or not made):
        raise DataError(
            f"{where}: {said}. Replace or remove them, or leave them out: --skip-unreadable of 'lowdim rank' "
            "(skip_unreadable=True in Python), --set data.settings.unreadable=skip of 'lowdim train-sparse'."
        )
    y = y[kept]
    for number in set(range(len(classes))) - set(y.tolist()):
        raise DataError(f"{where}: no picture of class {classes[number]!r} can be read. Replace or remove them all.")
    if said:
        warnings.warn(f"{where}: {said}; left out", stacklevel=2)
    left = set(kept)
    names, skipped = (
        tuple(file for place, (file, _) in enumerate(files) if (place in left) == read) for read in (True, False)
    )
    return Source(name, "image", torch.stack(made), y, classes, names, skipped)

"""The truth about the samples of a planted set as they were cut."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from lowdim.data import classification
from lowdim.data.classification import Dataset
from lowdim.data.errors import DataError
from lowdim.data.planted.sets import Planted
from lowdim.data.planted.truth import Truth


class Truths(NamedTuple):
    """The truth about each part of a data set, in the order of its samples."""

    train: Truth
    validation: Truth
    test: Truth


def load(
    name: str,
    *,
    validation: float = 0.1,
    limit: int | None = None,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
) -> tuple[Dataset, Truths]:
    """Return what `lowdim.data.classification.load` gives for the same arguments, and the truth about its cues.

    The truth is for measuring: what chooses or trains by it no longer does so without labels of the bias.

    Raises:
        DataError: nothing is known of cues in this set.
    """
    known = classification.find(name)
    if not known.cues:
        raise DataError(f"nothing was planted in data {name!r}, so there is no truth about it to measure by")
    classification.check_cut(validation, limit)
    made: Planted = classification.read_all(known, settings)
    rows = classification.divide(known, made.raw, validation=validation, limit=limit, seed=seed)
    return classification.parts(known, made.raw, rows), Truths(
        made.train.take(rows.train), made.train.take(rows.validation), made.test
    )


def truths(name: str, **how: Any) -> Truths:
    """Return the truth about the samples that `lowdim.data.classification.load` gives for the same arguments.

    Raises:
        DataError: nothing is known of cues in this set.
    """
    return load(name, **how)[1]

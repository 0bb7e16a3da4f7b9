"""Rows with a class: of a CSV or JSON lines file, or of a data set object of Hugging Face."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from lowdim.core.errors import suggest
from lowdim.data import text
from lowdim.data.errors import DataError
from lowdim.data.labelled.pictures import gathered
from lowdim.data.labelled.source import Columns, Source, encoded


def from_file(path: Path, columns: Columns, limit: int | None = None) -> Source:
    """Read texts with their classes from a file whose name ends in .csv, .json, .jsonl or .ndjson.

    Raises:
        DataError: the file cannot be read, a column is missing, a text is empty, or a name stands twice.
    """
    return _texts(islice(_rows(path), limit), columns, path.name)


def column(path: Path, name: str, key: str | None = None) -> dict[str, Any]:
    """Return what a column of such a file says of each row, by the column ``key``, or by the row's number from 1.

    Raises:
        DataError: the file cannot be read, a column is missing, or two rows have one key.
    """
    found: dict[str, Any] = {}
    for number, (where, row) in enumerate(_rows(path), start=1):
        for each in filter(None, (name, key)):
            _present(each, list(row), "groups", where)
        place = str(row[key]) if key else str(number)
        if place in found:
            raise DataError(f"{where}: {key} {place!r} stands in two rows. Keep one.")
        found[place] = row[name]
    return found


def from_object(data: Any, columns: Columns, size: int, skip: bool, limit: int | None = None) -> Source:
    """Read a split of a data set object of Hugging Face: texts, or pictures where there is a column of them.

    Names of classes are those of a ``ClassLabel`` column, else the values themselves.

    Raises:
        DataError: there is neither a column of texts nor of pictures, none of classes or names, no sample, or a picture
            that cannot be read.
    """
    known, name = list(data.column_names), str(getattr(data.info, "dataset_name", None) or "dataset")
    _present(columns.label, known, "label", name)
    if columns.id is not None:
        _present(columns.id, known, "id", name)
    if columns.image != Columns.image:
        _present(columns.image, known, "image", name)
    some = data if limit is None else data.select(range(min(limit, len(data))))
    if columns.image not in known:
        rows = ((f"row {number}", row) for number, row in enumerate(some, start=1))
        return _named(_texts(rows, columns, name), data, columns)
    feature = data.features[columns.image]
    if not hasattr(feature, "decode_example"):
        raise DataError(f"column {columns.image!r} of {name} holds no pictures. Cast it to datasets.Image().")
    # read undecoded, so that a picture that cannot be read stops nothing but itself
    coded = some.cast_column(columns.image, replace(feature, decode=False))
    feature = replace(feature, decode=True)
    names = some[columns.id] if columns.id else range(1, 1 + len(some))
    files = [(str(each), partial(_decoded, feature, coded, columns.image, row)) for row, each in enumerate(names)]
    y, classes = encoded(list(some[columns.label]), name)
    return _named(gathered(name, name, files, y, classes, size=size, skip=skip), data, columns)


def _decoded(feature: Any, rows: Any, column: str, row: int) -> Any:
    value = rows[row][column]
    if value is None:
        raise ValueError("there is no picture in this row")
    return feature.decode_example(value)


def _named(source: Source, data: Any, columns: Columns) -> Source:
    """Give classes the names that a ``ClassLabel`` has for its numbers.

    Raises:
        DataError: some samples have no class: the number is below zero.
    """
    told: Sequence[str] | None = getattr(data.features[columns.label], "names", None)
    if told is None:
        return source
    unlabelled = [place for place, each in enumerate(source.classes) if int(each) < 0]
    if unlabelled:
        count = sum(int((source.y == place).sum()) for place in unlabelled)
        raise DataError(
            f"{count} samples of {source.name} have class {source.classes[unlabelled[0]]}, which marks what nobody has "
            f"labelled. Leave them out: data.filter(lambda row: row[{columns.label!r}] >= 0)"
        )
    classes = tuple(told[int(each)] for each in source.classes)
    return replace(source, classes=classes)


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    return _csv(path) if path.suffix.lower() == ".csv" else text.records(path)


def _csv(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    csv.field_size_limit(1 << 24)
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            for row in reader:
                if None in row:
                    raise DataError(f"{path}, line {reader.line_num}: more cells than columns. Put texts in quotes.")
                yield f"{path}, line {reader.line_num}", row
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 (byte {error.start}). Convert it, as with iconv.") from None
    except csv.Error as error:
        raise DataError(f"{path} is no CSV that can be read: {error}") from None


def _texts(rows: Iterable[tuple[str, Mapping[str, Any]]], columns: Columns, name: str) -> Source:
    texts, labels, names = [], [], []
    for number, (where, row) in enumerate(rows, start=1):
        for what in ("text", "label", "id"):
            if (column := getattr(columns, what)) is not None:
                _present(column, list(row), what, where)
        found = row[columns.text]
        if not isinstance(found, str) or not found.strip():
            raise DataError(f"{where}: column {columns.text!r} holds no text. Fill or drop such rows.")
        texts.append(found)
        labels.append(row[columns.label])
        names.append(str(row[columns.id]) if columns.id else str(number))
    if not texts:
        raise DataError(f"{name} holds no samples")
    y, classes = encoded(labels, name)
    return Source(name, "text", texts, y, classes, tuple(names))


def _present(column: str, known: list[str], what: str, where: str) -> None:
    if column not in known:
        raise DataError(
            f"{where}: there is no column {column!r} for the {what}. {suggest(column, known)} Name it with --{what}."
        )

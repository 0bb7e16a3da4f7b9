"""Labelled samples by name, by path, or as an object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from lowdim.core.errors import suggest
from lowdim.data import classification
from lowdim.data.classification import TABLES, Known
from lowdim.data.errors import DataError
from lowdim.data.labelled import folder, own, rows
from lowdim.data.labelled.settings import SIZE
from lowdim.data.labelled.source import Columns, Source

_SETTINGS = "data.settings"
_CUT = ("--limit", "--validation")
_FLAGS = {"text": "--text", "image": "columns.image", "label": "--label", "id": "--id"}


USUAL_VALIDATION = 0.1


def open_source(
    data: Any,
    *,
    columns: Columns | None = None,
    size: int | None = None,
    usual: int = SIZE,
    skip: bool = False,
    limit: int | None = None,
    validation: float | None = None,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
) -> Source:
    """Read labelled samples.

    Args:
        data: a built-in name, a folder with a folder of pictures for each class, a CSV or JSON lines file of texts, a
            data set object of Hugging Face, or a `Source`.
        columns: of a table or data set object.
        size: pixels along a side of pictures; None takes ``usual``.
        usual: see ``size``.
        skip: leave out pictures that cannot be read, instead of refusing all.
        limit: samples at most; of what is cut see `lowdim.data.classification.load`, of others the first.
        validation: share that is cut off beside a test part, as `lowdim.data.classification.load` does; None takes 0.1
            of a built-in set, and leaves others whole.
        seed: of the permutation that cuts validation.
        settings: of a built-in set that takes some.

    Raises:
        DataError: there is nothing of this name, what there is cannot be read, or an argument would change nothing;
            says what would do.
    """
    columns = columns or Columns()
    if limit is not None and limit < 1:
        raise DataError(f"limit must be at least 1, got {limit}. Leave it out for all samples.")
    if size is not None and size < 1:
        raise DataError(f"size must be at least 1 pixel, got {size}. Leave it out for {usual}.")
    said = [_FLAGS[each.name] for each in fields(columns) if getattr(columns, each.name) != each.default]
    flags = {
        "--limit": limit,
        "--size": size,
        "--skip-unreadable": skip,
        "--validation": validation,
        _SETTINGS: settings,
    }
    given = {*said, *(flag for flag, value in flags.items() if value not in (None, False, {}))}
    first = limit if validation is None else None

    if validation is not None:
        classification.check_cut(validation, limit)

    def cut(found: Source) -> Source:
        if validation is None:
            return found
        known = Known(found.name, found.kind, "", "")
        return own.training(known, own.raw(found), validation, limit, seed, found.skipped)

    if isinstance(data, Source):
        cuts = _CUT if validation is not None and data.cut is None else ()
        _refuse(given, cuts, f"samples that are read already, {data.name!r}")
        return cut(data)
    if hasattr(data, "column_names") and hasattr(data, "features"):
        takes: tuple[str, ...] = ("--text",)
        kind = "texts"
        if columns.image in data.column_names:
            takes, kind = ("--size", "--skip-unreadable"), "pictures"
        _refuse(given, (*_CUT, "columns.image", "--label", "--id", *takes), f"a data set object of {kind}")
        return cut(rows.from_object(data, columns, size or usual, skip, first))
    if not isinstance(data, str | Path):
        raise DataError(
            f"data must be a name, a path, or a data set object of Hugging Face; got {type(data).__name__}. Of several "
            "splits give one, such as dataset['train']."
        )
    if isinstance(data, str) and data in classification.SETS:
        known = classification.settings_of(data)
        skips = ("--skip-unreadable",) if "unreadable" in known else ()
        more = ". Its size is a setting: data.settings.size" if "size" in known and size else ""
        _refuse(given, (*_CUT, _SETTINGS, *skips), f"the built-in set {data!r}{more}")
        how = {**(settings or {}), **({"unreadable": "skip"} if skip else {})}
        share = USUAL_VALIDATION if validation is None else validation
        return own.training(
            classification.find(data), classification.read(classification.find(data), how), share, limit, seed
        )
    path = Path(data).expanduser()
    if path.is_dir():
        _refuse(given, (*_CUT, "--size", "--skip-unreadable"), f"a folder of pictures, {str(data)!r}")
        return cut(folder.read(path, size or usual, skip, first))
    if path.is_file():
        if path.suffix.lower() in TABLES:
            _refuse(given, (*_CUT, "--text", "--label", "--id"), f"a table of texts, {str(data)!r}")
            return cut(rows.from_file(path, columns, first))
        raise DataError(f"{path} is none of {', '.join(TABLES)}. Texts come in CSV or JSON lines, pictures in folders.")
    raise DataError(
        f"there is no file, folder or built-in set {str(data)!r}. {suggest(str(data), classification.SETS)}"
    )


def _refuse(given: set[str], takes: tuple[str, ...], what: str) -> None:
    """Refuse arguments that a kind of data has no use for."""
    wrong = sorted(given - set(takes))
    if wrong:
        them = "it" if len(wrong) == 1 else "them"
        raise DataError(f"{' and '.join(wrong)} would change nothing: the data is {what}. Leave {them} out.")

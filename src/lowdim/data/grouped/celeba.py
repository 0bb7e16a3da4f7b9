"""CelebA: faces with forty attributes, one of them the class and another what goes with it."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING

from lowdim.core.errors import suggest
from lowdim.data.errors import DataError
from lowdim.data.grouped.pictures import File, gather, some
from lowdim.data.grouped.settings import Attributes
from lowdim.data.planted.sets import Planted

if TYPE_CHECKING:
    from lowdim.data.classification import Known

_PARTS = ("0", "1", "2")  # training, validation, test


def celeba(known: Known, how: Attributes) -> Planted:
    """Read ROOT/img_align_celeba with ROOT/list_attr_celeba and ROOT/list_eval_partition, each .txt or .csv.

    Paper: "Deep Learning Face Attributes in the Wild", ICCV 2015, arXiv 1411.7766; blond hair against the attribute
    "Male" as in "Distributionally Robust Neural Networks for Group Shifts", arXiv 1911.08731.

    Raises:
        DataError: a list or an attribute is not there, or the lists name other pictures.
    """
    home, pictures = how.home(), how.home("img_align_celeba")
    names, attributes = _table(home, "list_attr_celeba")
    _, parts = _table(home, "list_eval_partition")
    for key in ("target", "cue"):
        if getattr(how, key) not in names:
            raise DataError(
                f"data.settings.{key} {getattr(how, key)!r} is no attribute. {suggest(getattr(how, key), names)}"
            )
    target, cue = names.index(how.target), names.index(how.cue)
    found: dict[str, list[File]] = {part: [] for part in _PARTS}
    for name, values in attributes.items():
        if name not in parts:
            raise DataError(f"{name} has attributes and stands in no part. Are both lists of this set?")
        label, goes = int(values[target] == "1"), int(values[cue] == "1")
        found[parts[name][0]].append(File(pictures / name, label, (1 - goes if how.opposite else goes,)))
    train, validation, test = (found[part] for part in _PARTS)
    classes = (f"not {how.target}", how.target)
    return gather(how, classes, known.cues, some(train, how, known.name), validation, test)


def _table(home: Path, name: str) -> tuple[list[str], dict[str, list[str]]]:
    """Return the names of a list's columns, and its rows by picture."""
    file = next((path for ending in ("txt", "csv") if (path := home / f"{name}.{ending}").is_file()), None)
    if file is None:
        raise DataError(f"{home} holds neither {name}.txt nor {name}.csv. Unpack the lists of CelebA there")
    lines = file.read_text(encoding="utf-8").splitlines()
    rows = list(csv.reader(lines)) if file.suffix == ".csv" else [line.split() for line in lines]
    rows = [row for row in rows if row and row != [str(len(lines) - 2)]]  # the first line may be the number of rows
    pictured = [row for row in rows if row[0].lower().endswith((".jpg", ".png"))]
    heads = next((row for row in rows if row not in pictured), [])
    heads = heads[1:] if heads[:1] == ["image_id"] else heads
    return heads, {row[0]: row[1:] for row in pictured}

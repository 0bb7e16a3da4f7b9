"""How large the parts of the house may be: rooms, files, and the source as a whole."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

import lowdim

PACKAGE = Path(lowdim.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
LINES = {str(path.relative_to(PACKAGE)): path.read_text(encoding="utf-8").count("\n") for path in FILES}
ROOM = 18
"""Files that a room holds at most, its ``__init__`` apart."""

MOST = {"": 84_200, "train/": 25_700, "prune/recipe/rules.py": 80, "prune/engine.py": 140}
"""Lines that everything below a name has at most."""


def test_rooms_are_small() -> None:
    rooms = Counter(str(path.parent.relative_to(PACKAGE)) for path in FILES if path.name != "__init__.py")
    assert {room: count for room, count in rooms.items() if count > ROOM and room != "cli"} == {}


def test_files_are_short() -> None:
    assert {name: count for name, count in LINES.items() if count > 400} == {}


@pytest.mark.parametrize("part", MOST)
def test_parts_stay_small(part: str) -> None:
    count = sum(count for name, count in LINES.items() if name.startswith(part))
    assert count <= MOST[part], f"{part or 'src'} has {count:,} lines"

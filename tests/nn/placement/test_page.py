"""The table of docs/placement.md is what happens."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.nn.placement.test_registered import FOLDS, NAMES, REFUSED

from lowdim.core.recipe.families import build
from lowdim.nn.residual.rule import PRE, SANDWICH

PAGE = (Path(__file__).parents[3] / "docs" / "placement.md").read_text(encoding="utf-8")
ROWS = [[cell.strip("` ") for cell in row.split("|")[1:-1]] for row in re.findall(r"^\| .*\|$", PAGE, re.MULTILINE)]
HEAD = next(row for row in ROWS if "llama" in row)


def test_every_placement_has_a_row() -> None:
    found = [row[0] for row in ROWS if len(row) == len(HEAD) and row is not HEAD]
    assert found == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_row_is_true(name: str) -> None:
    said = dict(zip(HEAD, next(row for row in ROWS if row[0] == name), strict=True))
    for family in HEAD[1:]:
        own = SANDWICH if family == "gemma3" else PRE
        if (name, family) in REFUSED:
            expected = "refused"
        elif all(build("placement", name).rule(block, 4, own) == own for block in range(1, 5)):
            expected = "stock"
        else:
            expected = "folds" if family in FOLDS.get(name, ()) else "exact"
        assert said[family] == expected, family

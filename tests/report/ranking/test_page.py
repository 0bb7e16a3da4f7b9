"""The sheet: what it says is what the files say, and names are data."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.report.ranking import made

from lowdim.core.errors import CheckpointError
from lowdim.data.select.ranks import Ranks
from lowdim.report.build import build


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.pictures(tmp_path_factory.mktemp("ranked") / "ranks")


def test_the_sheet_shows_both_ends_of_every_class(out: Path) -> None:
    page = build(out).read_text()
    ranks = Ranks.load(out)
    assert page.count("data:image/png;base64,") == 2 * 2 * 10
    assert "&lt;b&gt;cats&lt;/b&gt;" in page and "<b>cats" not in page and "<script>" not in page
    assert "broken.png" in page and "1 picture could not be read" in page
    sign = ranks.facts["sign"]
    assert ("No sign of a bias. " in page) != sign["found"]
    assert f"Permutation test, p = {sign['p']:.4f}: " in page
    assert re.search(r"200 samples of 2 classes", page)
    assert page.count("<svg") == 2
    assert build(out).read_bytes() == page.encode()


def test_texts_are_shown_as_texts(tmp_path: Path) -> None:
    found = made.texts(tmp_path / "ranks")
    page = build(found, tmp_path / "sheet.html").read_text()
    assert "&lt;i&gt;text&lt;/i&gt; number" in page and "data:image/png" not in page


def test_ranks_saved_by_themselves_have_no_sheet(out: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no shown\.json"):
        build(Ranks.load(out).save(tmp_path / "alone"))

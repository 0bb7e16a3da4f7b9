import subprocess
import sys

import pytest

from lowdim.core.errors import RecipeError
from lowdim.core.pattern import NM, Block, FanIn, Gates, Structured, Unstructured, parse


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("unstructured", Unstructured()),
        ("structured", Structured()),
        ("2:4", NM(2, 4)),
        (" 3:8 ", NM(3, 8)),
        ("1:1", NM(1, 1)),
        ("1x16", Block(1, 16)),
        ("16X16", Block(16, 16)),
        ("fan-in", FanIn()),
        ("gates:3", Gates(3)),
    ],
)
def test_what_recipes_write(text, pattern):
    assert parse(text) == pattern
    assert parse(str(pattern)) == pattern


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("4:2", "did you mean 2:4"),
        ("0:4", "keeps nothing"),
        ("2:", "two whole numbers"),
        (":4", "two whole numbers"),
        ("2:4:8", "two whole numbers"),
        ("-2:4", "two whole numbers"),
        ("0x4", "rows must be a whole number of at least 1; got 0"),
        ("x4", "ROWSxCOLS"),
        ("unstructred", "Did you mean 'unstructured'"),
        ("", "Choose one of"),
    ],
)
def test_what_cannot_be_read(text, message):
    with pytest.raises(RecipeError, match=message):
        parse(text)


def test_reading_patterns_and_settings_does_not_import_torch():
    code = (
        "import sys; from lowdim.core.pattern import parse; from lowdim.core.score import Wanda; "
        "import lowdim.core.topk, lowdim.core.masks, lowdim.core.statistics, lowdim.core.random; "
        "parse('2:4').check_recipe(None); Wanda(variant=True); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

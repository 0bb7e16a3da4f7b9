"""The page of a diagnosis: one model, several side by side, many; and names that mean mischief."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest

from lowdim.core.errors import LowdimError
from lowdim.evaluate.diagnose.result import BlockFacts, Diagnosis, LayerFacts
from lowdim.report.diagnose.page import render, verdict, write
from lowdim.report.diagnose.pictures import pictures, short_names

BLOCKS = 6


def made(model: str = "builtin:tiny", *, whole: bool = True, blocks: int = BLOCKS) -> dict[str, Any]:
    more = {"sensitivity": 0.5, "error": 0.01, "perplexity": 9.0, "gradient": 0.2, "jacobian": 0.3} if whole else {}
    facts = [BlockFacts(i, 2.0**i, 1.5**i, 0.1 + i / 100, 0.02 * (i + 1), **more) for i in range(blocks)]
    layers = [
        LayerFacts(f"model.layers.{i}.mlp.experts.{e}.{kind}", i, 10, 0.3 + i, 2.0 + e)
        for i in range(blocks)
        for e in range(2)
        for kind in ("up", "down")
    ]
    angles = [[0.05 * (n + 1) for n in range(blocks - i)] for i in range(blocks)]
    return Diagnosis(model, facts, layers if whole else [], angles, 1.0, 20.0, {"source": "builtin"}).to_dict()


def test_one_model() -> None:
    page = render([made()])
    assert "Perplexity 20.0. Leaving out one block costs 0.500 nats in the shallower half and 0.500" in page
    assert page.count("<svg") == 8
    assert "block 3, n = 2: 0.1" in page
    assert "block 5, n = 2: beyond the last block" in page
    assert "block 2, up: 3.2527" not in page
    assert "block 2, up: 3.25" in page  # the root of the sum of both experts' squares
    assert "block 2, up: 2.5" in page  # the mean of both experts' exponents
    assert "Every block</h2>" in page
    assert "//" not in re.sub(r'xmlns[^ ]*="[^"]*"', "", page)


def test_what_was_not_measured_has_no_picture_and_no_column() -> None:
    page = render([made(whole=False)])
    assert page.count("<svg") == 4
    assert "Gradient" not in page
    assert "Without it" not in page


def test_what_could_not_be_measured_is_said_so() -> None:
    noted = made(blocks=2) | {"notes": ["Without block 0 the model computes NaN: no perplexity."]}
    noted["blocks"][0] |= {"sensitivity": None, "perplexity": None}
    page = render([noted])
    assert "Without block 0 the model computes NaN" in page
    assert "Not measured" in page
    assert "Block 1 is needed least: 0.500 nats" in page


def test_several_models_are_lines_and_many_are_rows() -> None:
    few = [made(f"runs/a/step-{i}", whole=False) for i in range(3)]
    page = render(few)
    assert "step-0 to step-2" in page
    assert all(f"step-{i}, block 4:" in page for i in range(3))
    assert page.count('<th scope="row">step-') == 3
    assert "Every block of step-2" in page
    many = [made(f"runs/a/step-{i}", whole=False, blocks=2) for i in range(8)]
    assert sum("A row per model" in picture.caption for picture in pictures(many)) == 3


def test_deep_models_have_no_more_rows_than_can_be_read() -> None:
    svg = pictures([made(whole=False, blocks=40)])[-1].svg
    assert "n = 4" in svg
    assert "n = 2<" not in svg


def test_names_tell_models_apart() -> None:
    same = [{"model": "a"}, {"model": "a"}]
    assert short_names(same) == ["a (0)", "a (1)"]
    assert short_names([{"model": "x/a"}]) == ["a"]
    assert verdict(made(), "b").startswith("b: perplexity 20.0.")


def test_names_run_nothing_and_the_same_diagnosis_gives_the_same_bytes(tmp_path: Path) -> None:
    evil = made("<script>alert(1)</script>", blocks=2)
    evil["layers"][0]["name"] = "model.layers.0.<img src=x onerror=alert(1)>"
    page = render([evil])
    assert "<script>" not in page
    assert "<img" not in page
    assert page == render([copy.deepcopy(evil)])
    file = write([evil], tmp_path / "page.html")
    assert file.read_text() == page
    with pytest.raises(LowdimError, match="cannot write the report"):
        write([evil], tmp_path / "none" / "page.html")

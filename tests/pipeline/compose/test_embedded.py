"""The embedded model, out of the box: built-in facts taught and forgotten, a mask held."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.pipeline.compose.conftest import row

from lowdim.pipeline.compose.api import compose
from lowdim.pipeline.compose.recipe import Composition


@pytest.mark.nightly
def test_built_in_edits_survive_a_light_pruning_and_the_mask_survives_them(tmp_path: Path) -> None:
    stages = [{"prune": {"sparsity": 0.2, "method": "magnitude"}}, "edit"]
    recipe = Composition(stages=stages, evaluation={"text": "builtin", "windows": 4})
    found = compose("builtin:smollm2-135m", recipe, out=tmp_path / "out")
    assert row(found, "success")["first"] == 0.0 and row(found, "success")["orders"]["model"] >= 0.9
    assert row(found, "rephrase")["orders"]["model"] > 0.3
    assert row(found, "zeros")["orders"]["model"] == pytest.approx(0.2, abs=2e-3)
    assert found["stages"]["model"][1]["broken"] == []
    before, after = row(found, "perplexity")["first"], row(found, "perplexity")["orders"]["model"]
    assert after < 1.3 * before


@pytest.mark.nightly
def test_built_in_capitals_are_forgotten_and_the_rest_is_kept(tmp_path: Path) -> None:
    recipe = Composition(stages=["unlearn"], evaluation={"text": "builtin", "windows": 4})
    found = compose("builtin:smollm2-135m", recipe, out=tmp_path / "out")
    assert sum(found["first"]["forget"]) >= 8 and sum(found["first"]["retain"]) >= 8
    assert row(found, "forgotten")["orders"]["model"] >= 0.8
    assert row(found, "retained")["orders"]["model"] >= 0.7

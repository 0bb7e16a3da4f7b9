"""What must hold of any composition: no stage is the identity, stages that commute have no order."""

from __future__ import annotations

import filecmp
from pathlib import Path

import pytest
from tests.pipeline.compose.conftest import Made, equal, row, weights

from lowdim.models.disk.verify import verify


def test_no_stage_is_the_identity_byte_by_byte(composed: Made, model: Path, tmp_path: Path) -> None:
    found = composed()
    assert filecmp.cmp(model / "model.safetensors", tmp_path / "out/model/model.safetensors", shallow=False)
    assert row(found, "perplexity")["error"] == 0.0
    assert row(found, "perplexity")["first"] == row(found, "perplexity")["orders"]["model"]
    assert found["sentence"] == "No stage: the model as it was."


def test_a_stage_after_nothing_is_that_stage(composed: Made, tmp_path: Path) -> None:
    from lowdim.prune.api import prune
    from lowdim.prune.recipe import Recipe

    found = composed({"prune": {"sparsity": 0.5, "method": "magnitude"}})
    recipe = Recipe(sparsity=0.5, method="magnitude", evaluation={"text": None})
    prune(found["model"], recipe, out=tmp_path / "alone")
    assert equal(tmp_path / "out/model", tmp_path / "alone")


def test_stages_that_commute_have_no_order(composed: Made, tmp_path: Path) -> None:
    """Zeros of less are among those of more: which comes first decides nothing."""
    stages = [{"prune": {"sparsity": share, "method": "magnitude"}} for share in (0.3, 0.6)]
    found = composed(*stages, orders="both")
    assert equal(tmp_path / "out/model", tmp_path / "out/reversed")
    judged = [each["sensitivity"] for each in found["table"] if each["sensitivity"] is not None]
    assert judged and set(judged) == {0.0}
    assert found["sentence"].startswith("The order does not matter")


@pytest.mark.slow
def test_stages_that_do_not_commute_have_one(composed: Made, taught: str, tmp_path: Path) -> None:
    edit = {"edit": {"edits": taught, "lr": 0.01, "steps": 10}}
    found = composed({"prune": {"sparsity": 0.7, "method": "magnitude"}}, edit, orders="both")
    assert not equal(tmp_path / "out/model", tmp_path / "out/reversed")
    assert row(found, "perplexity")["sensitivity"] > 0
    for name in ("model", "reversed"):
        assert row(found, "zeros")["orders"][name] == pytest.approx(0.7, abs=1e-3)


def test_without_what_it_broke_put_right_an_edit_fills_the_zeros(composed: Made, taught: str, tmp_path: Path) -> None:
    """The same edit, held to the mask while it trains, or set right afterwards: the mask is the same, exactly."""
    prune = {"prune": {"sparsity": 0.5, "method": "magnitude"}}
    edit = {"edits": taught, "lr": 0.01, "steps": 5}
    free = composed(prune, {"edit": {**edit, "masked": False}}, out="free", keep=True)
    kept = composed(prune, {"edit": edit}, out="kept")
    [breach] = free["stages"]["model"][1]["broken"]
    pruned = weights(tmp_path / "free/model.1-prune")
    layers = [name for name in pruned if "proj" in name]
    zeros = sum(int((pruned[name] == 0).sum()) for name in layers)
    assert breach["kind"] == "mask" and 0 < breach["count"] <= breach["of"] == zeros
    assert kept["stages"]["model"][1]["broken"] == []
    for out in ("free", "kept"):
        after = weights(tmp_path / out / "model")
        assert all(bool((after[name][pruned[name] == 0] == 0).all()) for name in layers)
    assert not equal(tmp_path / "free/model", tmp_path / "free/model.1-prune")


@pytest.mark.usefixtures("checked_here")
def test_what_comes_out_is_a_model_like_any_other(composed: Made, model: Path, taught: str, tmp_path: Path) -> None:
    from lowdim.infer.sparse.load import load
    from lowdim.models.disk import manifest

    edit = {"edit": {"edits": taught, "lr": 0.01, "steps": 3}}
    composed({"prune": {"sparsity": 0.5, "method": "magnitude"}}, "round", edit)
    out = tmp_path / "out/model"
    assert verify(out).passed
    record = manifest.read(out)
    assert record.model.source == str(model)
    assert [each["stage"] for each in record.interventions or []] == ["prune", "round", "edit"]
    assert load(out).config.num_hidden_layers == 3


def test_recovery_keeps_the_mask_and_trains_through_the_grid(composed: Made, text: Path, tmp_path: Path) -> None:
    prune = {"prune": {"sparsity": 0.5, "method": "magnitude"}}
    small = {"stage": "blocks", "calibration": {"source": str(text), "samples": 64, "context": 32}, "batch_tokens": 256}
    recover = {"recover": {**small, "blocks": {"passes": 0.5}, "quantize": "int8"}}
    found = composed(prune, "round", recover, keep=True)
    last = found["stages"]["model"][2]
    assert last["broken"] == [] and last["holds"]["grid"]["matrices"] == last["holds"]["mask"]["matrices"] == 21
    before, after = weights(tmp_path / "out/model.1-prune"), weights(tmp_path / "out/model")
    layers = [name for name in before if "proj" in name]
    assert all(bool((after[name][before[name] == 0] == 0).all()) for name in layers)
    assert not all(bool((after[name] == before[name]).all()) for name in layers)

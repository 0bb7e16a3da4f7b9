"""What a run says of what its allocation measured, and of its size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.zoo import VOCAB, ZOO

from lowdim.core.allocation import OWL, AlphaPruning, LayerInfo, ScannedLayer, Uniform
from lowdim.models.load import quiet
from lowdim.prune.api import prune
from lowdim.prune.recipe import Recipe

LAYERS = [LayerInfo("0.a", 0, (2, 4)), LayerInfo("0.b", 0, (2, 2)), LayerInfo("2.a", 2, (2, 4))]


@pytest.mark.parametrize("pooling", ["block", "layer"])
def test_shares_per_block_are_those_that_owl_saw(pooling: Any) -> None:
    rng = torch.Generator().manual_seed(0)
    weights = [torch.randn(i.rows, i.cols, generator=rng) ** 3 for i in LAYERS]
    scanned = [ScannedLayer(i, w, torch.ones(i.cols)) for i, w in zip(LAYERS, weights, strict=True)]
    owl = OWL(m=1.5, pooling=pooling)
    layer_shares, block_shares = owl.measure(lambda: iter([scanned[:2], [], scanned[2:]]))
    found = owl.describe(layer_shares, LAYERS, 3)["outliers"]["1.5"]
    assert found[0] == pytest.approx(block_shares[0] / 100)
    assert 0 < found[0] < 1
    assert found[1] is None
    assert found[2] == pytest.approx(block_shares[2] / 100)


def test_alpha_is_kept_per_layer_and_others_measure_nothing() -> None:
    assert AlphaPruning().describe({"0.a": 3.5}, LAYERS, 3) == {"alpha": {"0.a": 3.5}}
    assert Uniform().describe({}, LAYERS, 3) == {}


def run(allocation: str, tokens: torch.Tensor) -> dict[str, Any]:
    recipe = Recipe(sparsity=0.5, score="wanda", allocation=allocation, evaluation={"text": None})
    recipe = recipe.model_copy(update={"calibration": recipe.calibration.model_copy(update={"samples": 2})})
    return prune(ZOO["llama"](), recipe, calibration=tokens).manifest


@pytest.mark.parametrize("allocation", ["owl", "alpha", "uniform"])
def test_a_run_records_its_probes(allocation: str) -> None:
    manifest = run(allocation, torch.arange(2 * 16).view(2, 16) % VOCAB)
    found = manifest["probes"]
    if allocation == "owl":
        assert len(found["outliers"]["5"]) == 3
        assert all(0 <= share < 0.2 for share in found["outliers"]["5"])
    elif allocation == "alpha":
        assert found["alpha"].keys() == manifest["layers"].keys()
        assert min(found["alpha"].values()) > 1
    else:
        assert found == {}


def test_tied_weights_count_once_in_the_sparsity_of_the_model(tmp_path: Path) -> None:
    model = ZOO["llama"]()
    with quiet():
        model.save_pretrained(tmp_path / "model")
    recipe = Recipe(sparsity=0.5, score="magnitude", evaluation={"text": None})
    manifest = prune(tmp_path / "model", recipe, out=tmp_path / "out").manifest
    zeros = sum(part["numel"] - part["nonzeros"] for part in manifest["layers"].values())
    assert manifest["sparsity"]["model"] == zeros / sum(p.numel() for p in model.parameters())

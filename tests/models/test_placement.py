"""A placed model on disk: what loads through lowdim computes with it, everything else refuses it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.nn.placement.decoders import TOKENS, decoder, stir

import lowdim
from lowdim.core.errors import CheckpointError, LowdimError
from lowdim.data.windows import Windows
from lowdim.evaluate.diagnose.api import diagnose
from lowdim.infer.decode.open import open_backend
from lowdim.models.load import load, quiet
from lowdim.models.walk.support import verdict
from lowdim.nn.placement import GPAS, LayerNormScaling, MixLN
from lowdim.nn.residual.config import placement_of

PLACEMENT = GPAS(over={"name": "mix-ln", "alpha": 0.5})


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    model, home = decoder("llama"), tmp_path_factory.mktemp("placed") / "model"
    PLACEMENT.apply_(model)
    with quiet():
        stir(model).save_pretrained(home)
    return home, model


@torch.no_grad()
def test_lowdim_loads_it(saved: tuple[Path, Any]) -> None:
    home, model = saved
    for found in (lowdim.load(home), load(home, dtype=torch.float32)):
        assert placement_of(found.config) == PLACEMENT
        assert torch.equal(found(TOKENS).logits, model(TOKENS).logits)
    half = lowdim.load(home, dtype="bf16")
    assert half.model.layers[0].gpas.gate.dtype == torch.float32
    assert torch.equal(half.model.layers[0].gpas.gate, model.model.layers[0].gpas.gate)
    assert half.model.layers[0].input_layernorm.weight.dtype == torch.bfloat16


def test_it_generates_through_transformers_not_the_native_engine(saved: tuple[Path, Any]) -> None:
    opened = open_backend(lowdim.load(saved[0]))
    assert opened.name == "transformers" and "blocks with the placement GPAS(" in opened.reason


def test_what_knows_stock_models_refuses_it(saved: tuple[Path, Any], tmp_path: Path) -> None:
    home, _ = saved
    said = r"has the placement GPAS\(.*which only lowdim.load and what loads through it"
    with pytest.raises(CheckpointError, match=said):
        lowdim.load(home, dtype="int8")
    with pytest.raises(CheckpointError, match=said):
        lowdim.prune(home, lowdim.Recipe(sparsity=0.5, score="magnitude"), out=tmp_path / "pruned")
    assert "refused: " in verdict(str(home))
    assert not any(tmp_path.iterdir())


def test_it_is_diagnosed_as_it_runs(saved: tuple[Path, Any]) -> None:
    home, model = saved
    text = Windows(torch.arange(64).view(4, 16), {})
    found, expected = (diagnose(each, text=text) for each in (str(home), model))
    assert [block.influence for block in found.blocks] == [block.influence for block in expected.blocks]
    stock = diagnose(stir(decoder("llama")), text=text)
    assert [block.influence for block in found.blocks] != [block.influence for block in stock.blocks]


def test_a_folded_one_can_be_pruned(tmp_path: Path) -> None:
    model = decoder("llama")
    LayerNormScaling().apply_(model)
    LayerNormScaling().fold_(model)
    with quiet():
        model.save_pretrained(tmp_path)
    assert verdict(str(tmp_path)) == "supported"


def test_tensors_that_are_missing(saved: tuple[Path, Any], tmp_path: Path) -> None:
    home, _ = saved
    for name in ("model.layers.1.gpas.gate", "model.layers.2.input_layernorm.weight"):
        tensors = load_file(home / "model.safetensors")
        del tensors[name]
        save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
        (tmp_path / "config.json").write_text((home / "config.json").read_text())
        with pytest.raises(CheckpointError, match=rf"lacks 1 of the model's weights, first '{name}'"):
            load(tmp_path)


def test_a_placement_of_a_later_version(saved: tuple[Path, Any], tmp_path: Path) -> None:
    raw = json.loads((saved[0] / "config.json").read_text())
    raw["lowdim_placement"] = {"name": "mixed-ln"}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    (tmp_path / "model.safetensors").write_bytes((saved[0] / "model.safetensors").read_bytes())
    with pytest.raises(LowdimError, match=r"unknown placement 'mixed-ln'\. Did you mean 'mix-ln'"):
        load(tmp_path)


def test_in_memory_it_is_pruned_as_it_runs_and_written_as_it_is(tmp_path: Path) -> None:
    """Wanda reads what enters each layer: under another rule than the block's own, that is another thing."""
    recipe = lowdim.Recipe(sparsity=0.5, score="wanda", calibration={"samples": 4}, evaluation={"text": None})
    masks = []
    for placed in (False, True):
        model = decoder("llama")
        if placed:
            MixLN(alpha=0.5).apply_(model)
        stir(model)
        lowdim.prune(model, recipe, calibration=torch.arange(64).view(4, 16), out=tmp_path / str(placed))
        found = lowdim.load(tmp_path / str(placed))
        assert torch.equal(found(TOKENS).logits, model(TOKENS).logits)
        masks.append(lowdim.Masks.load(tmp_path / str(placed)))
    assert placement_of(found.config) == MixLN(alpha=0.5)
    assert masks[0].hash() != masks[1].hash()

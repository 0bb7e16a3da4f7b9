"""What an inspection says, against plain loops; and that it changes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.evaluate.audit.test_dropping import bits, same
from tests.models.zoo import VOCAB, ZOO
from torch import nn
from transformers import PreTrainedModel

from lowdim.core.errors import NumericalError, RecipeError
from lowdim.core.spectrum import eigenvalues, tail_exponent
from lowdim.data.calibration import calibration
from lowdim.evaluate.inspect import inspect
from lowdim.models.load import quiet
from lowdim.prune.api import prune
from lowdim.prune.recipe import Recipe

TOKENS = torch.arange(4 * 16).mul(7).remainder(VOCAB).view(4, 16)


def linears(model: PreTrainedModel) -> dict[str, nn.Linear]:
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and "layers." in n}


def plain_scores(model: PreTrainedModel, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """|W| * ||x|| / sqrt(tokens) of every Linear of a Llama, by hooks on one forward of the whole model."""
    inputs: dict[str, torch.Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda m, args, out, name=name: inputs.__setitem__(name, args[0].detach()))
        for name, module in linears(model).items()
    ]
    with torch.no_grad():
        model(input_ids=ids)
    for hook in hooks:
        hook.remove()
    norms = {name: x.reshape(-1, x.shape[-1]).double().square().mean(0).sqrt() for name, x in inputs.items()}
    return {name: module.weight.detach().abs().double() * norms[name] for name, module in linears(model).items()}


def share(scores: torch.Tensor, m: float) -> float:
    return float((scores > m * scores.mean()).double().mean())


def test_outlier_shares_are_those_of_a_plain_loop() -> None:
    model = ZOO["llama"]()
    found = inspect(model, calibration=TOKENS, samples=4, ms=[1.5, 3], alpha=False)
    scores = plain_scores(model, TOKENS)
    for block in range(3):
        mine = [s for name, s in scores.items() if name.startswith(f"model.layers.{block}.")]
        assert len(mine) == 7
        for m in (1.5, 3):
            whole = share(torch.cat([s.flatten() for s in mine]), m)
            single = sum(share(s, m) for s in mine) / 7
            assert found.outliers["block"][f"{m:g}"][block] == pytest.approx(whole, abs=1.5e-4)
            assert found.outliers["layer"][f"{m:g}"][block] == pytest.approx(single, abs=3e-4)
    assert found.notes == []


def test_a_planted_outlier_feature_is_found_in_its_block_alone() -> None:
    model = ZOO["llama"]()
    quiet_ = inspect(model, calibration=TOKENS, samples=4, ms=[10], alpha=False).outliers["block"]["10"]
    with torch.no_grad():
        model.model.layers[1].post_attention_layernorm.weight[3] = 60.0
    loud = inspect(model, calibration=TOKENS, samples=4, ms=[10], alpha=False).outliers["block"]["10"]
    assert loud[0] == quiet_[0]
    assert loud[1] > 3 * max(quiet_[1], 0.001)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mixtral", "opt"])
def test_nothing_changes_and_disk_and_memory_agree(kind: str, tmp_path: Path) -> None:
    model = ZOO[kind]()
    before = bits(model)
    here = inspect(model, calibration=TOKENS, samples=4)
    assert same(bits(model), before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    with quiet():
        model.save_pretrained(tmp_path)
    there = inspect(tmp_path, calibration=TOKENS, samples=4, compute="float32")
    assert [layer.numel for layer in here.layers] == [layer.numel for layer in there.layers]
    assert here.weights == there.weights == sum(p.numel() for p in model.parameters())
    for a, b in zip(here.layers, there.layers, strict=True):
        assert (a.name, a.block, a.zeros) == (b.name, b.block, b.zeros)
        assert a.alpha == pytest.approx(b.alpha)
    for pooling in ("block", "layer"):
        for m in ("3", "5", "7", "10"):
            assert here.outliers[pooling][m] == pytest.approx(there.outliers[pooling][m], abs=2e-3)


def test_alpha_is_alpha_prunings() -> None:
    model = ZOO["llama"]()
    found = inspect(model)
    exponents = {name: tail_exponent(eigenvalues(m.weight)) for name, m in linears(model).items()}
    assert {layer.name: layer.alpha for layer in found.layers} == exponents
    assert found.probes() == {"alpha": exponents}
    mine = [a for name, a in exponents.items() if ".layers.2." in name]
    assert found.block_alpha(2) == pytest.approx(sum(mine) / len(mine))


def test_probes_are_those_that_a_run_records() -> None:
    data = calibration(TOKENS, samples=4)
    recipe: dict[str, Any] = {"sparsity": 0.5, "score": "wanda", "evaluation": {"text": None}}
    owl = prune(ZOO["llama"](), Recipe(**recipe, allocation="owl"), calibration=data).manifest
    alpha = prune(ZOO["llama"](), Recipe(**recipe, allocation="alpha"), calibration=data).manifest
    found = inspect(ZOO["llama"](), calibration=data, ms=[5]).to_dict()["probes"]
    assert found["outliers"]["5"] == pytest.approx(owl["probes"]["outliers"]["5"])
    assert max(found["outliers"]["5"]) > 0
    assert found["alpha"] == pytest.approx(alpha["probes"]["alpha"])


def test_padding_counts_for_nothing() -> None:
    ids = torch.cat([torch.zeros(4, 5, dtype=torch.int64), TOKENS], 1)
    mask = torch.cat([torch.zeros(4, 5, dtype=torch.int64), torch.ones_like(TOKENS)], 1)
    padded = [{"input_ids": row, "attention_mask": keep} for row, keep in zip(ids, mask, strict=True)]
    plain = inspect(ZOO["llama"](), calibration=TOKENS, samples=4, alpha=False).outliers
    found = inspect(ZOO["llama"](), calibration=padded, samples=4, alpha=False).outliers
    assert found["block"]["3"] == pytest.approx(plain["block"]["3"], abs=2e-4)


def test_sparsity_is_counted_per_layer_block_and_model() -> None:
    model = ZOO["llama"]()
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.weight.fill_(0.0)
        model.model.layers[2].mlp.up_proj.weight[0, :5] = -0.0
    found = inspect(model, alpha=False)
    zeros = {layer.name: layer.zeros for layer in found.layers if layer.zeros}
    assert zeros == {"model.layers.0.self_attn.q_proj": 1024, "model.layers.2.mlp.up_proj": 5}
    block = 2 * 1024 + 2 * 512 + 3 * 2048
    assert found.block_sparsity(0) == 1024 / block
    assert found.block_sparsity(1) == 0
    assert found.sparsity == 1029 / (3 * block)
    assert found.model_sparsity == 1029 / sum(p.numel() for p in model.parameters())
    plain = found.to_dict()
    assert plain["sparsity"]["blocks"] == [1024 / block, 0, 5 / block]
    assert plain["layers"]["model.layers.2.mlp.up_proj"]["nonzeros"] == 2043


def test_a_layer_of_zeros_has_no_alpha() -> None:
    model = ZOO["llama"]()
    with torch.no_grad():
        for layer in model.model.layers[0].self_attn.children():
            layer.weight.fill_(0.0)
        for layer in (model.model.layers[0].mlp.gate_proj, model.model.layers[0].mlp.up_proj):
            layer.weight.fill_(0.0)
    found = inspect(model, calibration=TOKENS, samples=4)
    assert found.layers[0].alpha is None
    assert "model.layers.0.self_attn.q_proj" not in found.probes()["alpha"]
    assert found.block_alpha(0) == found.layers[6].alpha


def test_without_calibration_outliers_are_left_out_and_it_says_so() -> None:
    found = inspect(ZOO["llama"]())
    assert found.outliers == {}
    assert "outliers" not in found.to_dict()["probes"]
    assert "No outlier shares" in found.render()
    assert "M=" not in found.render()


def test_an_expert_that_no_token_reached_is_noted() -> None:
    found = inspect(ZOO["mixtral"](), calibration=TOKENS[:1, :2], samples=1, alpha=False)
    assert any("experts" in note and "no token reached it" in note for note in found.notes)


def test_it_renders_and_survives_json() -> None:
    found = inspect(ZOO["llama"](), calibration=TOKENS, samples=4)
    text = found.render()
    assert "model.layers.2.mlp.down_proj" in text
    assert "M=10" in text
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["data"]["calibration"]["samples"] == 4


def test_what_is_not_prunable_is_listed() -> None:
    found = inspect(ZOO["mixtral"]())
    reasons = {entry["reason"] for entry in found.to_dict()["skipped"]}
    assert any("rout" in reason.lower() for reason in reasons)
    assert "left out, 3 times:" in found.summary()


def test_bad_input_is_named() -> None:
    with pytest.raises(RecipeError, match="m must be above 0"):
        inspect(ZOO["llama"](), ms=[0])
    model = ZOO["llama"]()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(NumericalError, match=r"layers\.1\.mlp\.up_proj"):
        inspect(model)

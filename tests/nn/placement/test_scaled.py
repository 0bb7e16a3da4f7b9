"""Initial weights: their standard deviations by hand, those of DeepNorm among them."""

from __future__ import annotations

from math import sqrt
from typing import Any

import pytest
import torch
from tests.nn.placement.decoders import TOKENS, decoder, stir
from torch import Tensor

from lowdim.core.errors import LowdimError
from lowdim.nn.placement import DeepNorm, DepthScaledInit, ScaledInit
from lowdim.nn.residual.rule import PRE

L = 4


def spread(weight: Tensor) -> float:
    return float(weight.detach().std())


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_scaled(family: str) -> None:
    model, stock = decoder(family), decoder(family)
    ScaledInit().apply_(model)
    target = 0.02 / sqrt(2 * L)
    last = ("o_proj.weight", "down_proj.weight", "c_proj.weight")
    for (name, ours), theirs in zip(model.named_parameters(), stock.parameters(), strict=True):
        if name.endswith(last):
            assert spread(ours) == pytest.approx(target, rel=1e-4)
            assert torch.allclose(ours * (spread(theirs) / target), theirs, rtol=1e-4)
        else:
            assert torch.equal(ours, theirs)


def test_scaled_by_depth() -> None:
    model, stock = decoder("llama"), decoder("llama")
    DepthScaledInit().apply_(model)
    for (name, ours), theirs in zip(model.named_parameters(), stock.parameters(), strict=True):
        block = int(name.split(".")[2]) + 1 if ".layers." in name and ours.dim() > 1 else 1
        assert torch.allclose(ours, theirs / sqrt(block)), name


def test_deepnorm() -> None:
    assert DeepNorm().rule(1, 8, PRE).skip == 2.0
    assert DeepNorm().rule(1, 32, PRE).skip == pytest.approx(2.8284, abs=1e-4)
    model = decoder("qwen3")
    DeepNorm().apply_(model)
    gain = (8 * L) ** -0.25
    sizes = {
        "q_proj": sqrt(2 / (32 + 32)),
        "k_proj": sqrt(2 / (32 + 16)),
        "v_proj": gain * sqrt(2 / (32 + 16)),
        "o_proj": gain * sqrt(2 / (32 + 32)),
        **dict.fromkeys(("gate_proj", "up_proj", "down_proj"), gain * sqrt(2 / (32 + 48))),
    }
    seen = set()
    for name, parameter in model.named_parameters():
        kind = name.split(".")[-2]
        if kind in sizes:
            assert spread(parameter) == pytest.approx(sizes[kind], rel=1e-4), name
            seen.add(kind)
    assert seen == sizes.keys()
    assert all(p.requires_grad for p in model.parameters())


def test_deepnorm_tells_values_in_a_joint_matrix() -> None:
    model = decoder("gpt2")
    DeepNorm().apply_(model)
    gain = (8 * L) ** -0.25
    for block in model.transformer.h:
        joint = block.attn.c_attn.weight
        assert spread(joint[:, :64]) == pytest.approx(sqrt(2 / 64), rel=1e-4)
        assert spread(joint[:, 64:]) == pytest.approx(gain * sqrt(2 / 64), rel=1e-4)


def test_the_seed_of_the_model_decides() -> None:
    one, same, other = (decoder("llama", seed=seed) for seed in (0, 0, 1))
    for model in (one, same, other):
        DeepNorm().apply_(model)
    name = "model.layers.1.mlp.down_proj.weight"
    assert torch.equal(one.get_parameter(name), same.get_parameter(name))
    assert not torch.allclose(one.get_parameter(name), other.get_parameter(name))


def test_a_trained_network_keeps_its_weights() -> None:
    model = stir(decoder("llama"))
    before = {n: p.clone() for n, p in model.named_parameters()}
    with pytest.warns(UserWarning, match=r"has been trained, and DeepNorm\(\) changes what it computes"):
        DeepNorm().apply_(model)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


@pytest.mark.parametrize("placement", [ScaledInit(), DepthScaledInit(), ScaledInit(over="lns")])
def test_or_is_refused(placement: Any) -> None:
    model = stir(decoder("llama"))
    before = model(TOKENS).logits
    with pytest.raises(LowdimError, match=r"do not show that this network is untrained\. Build it anew"):
        placement.apply_(model)
    assert torch.equal(model(TOKENS).logits, before)


def test_a_mixture_has_no_last_matrix() -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
    torch.manual_seed(0)
    model = MixtralForCausalLM(
        MixtralConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, num_local_experts=2)
    )
    for placement in (ScaledInit(), DeepNorm()):
        with pytest.raises(LowdimError, match="experts"):
            placement.apply_(model)

"""LayerNorm Scaling: what it folds into, and its learned form."""

from __future__ import annotations

import pytest
import torch
from tests.nn.placement.decoders import TOKENS, decoder, stir

from lowdim.core.errors import LowdimError, RecipeError
from lowdim.nn.placement import LayerNormScaling, LearnedLayerNormScaling
from lowdim.nn.residual.rule import PRE


def test_the_factor_is_that_of_the_block() -> None:
    scales = [LayerNormScaling().rule(block, 9, PRE).scale for block in range(1, 10)]
    assert scales == pytest.approx([block**-0.5 for block in range(1, 10)])


def test_one_block_is_pre_ln() -> None:
    model = decoder("llama", blocks=1)
    LayerNormScaling().apply_(model)
    assert torch.equal(model(TOKENS).logits, decoder("llama", blocks=1)(TOKENS).logits)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_it_folds_bit_for_bit_where_the_factor_is_a_power_of_two(family: str) -> None:
    model = decoder(family, blocks=4)
    LayerNormScaling().apply_(model)
    blocks = model.transformer.h if family == "gpt2" else model.model.layers
    x = torch.randn(1, 3, 32, generator=torch.Generator().manual_seed(0))
    stir(model)
    norms = [blocks[3].get_submodule(seat.enters) for seat in blocks[3].placed.seats]
    expected = [norm(x) * 0.5 for norm in norms]
    LayerNormScaling().fold_(model)
    assert all(torch.equal(norm(x), y) for norm, y in zip(norms, expected, strict=True))


def test_gains_of_one_more_than_the_weight_fold_too() -> None:
    from transformers import GemmaConfig, GemmaForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "head_dim": 8}
    model = GemmaForCausalLM(GemmaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2)).eval()
    LayerNormScaling().apply_(model)
    before = stir(model)(TOKENS).logits
    LayerNormScaling().fold_(model)
    assert (model(TOKENS).logits - before).abs().max() < 1e-5 * before.std()


def test_in_bf16_folded_gains_are_rounded_once() -> None:
    model = decoder("llama").bfloat16()
    LayerNormScaling().apply_(model)
    stir(model)
    gains = {n: p.clone() for n, p in model.named_parameters() if "layernorm" in n}
    LayerNormScaling().fold_(model)
    for name, gain in gains.items():
        block = int(name.split(".")[2]) + 1
        assert torch.equal(model.get_parameter(name), (gain.double() / block**0.5).bfloat16())


def test_the_learned_form_begins_where_the_fixed_one_does() -> None:
    fixed, learned = decoder("llama"), decoder("llama")
    LayerNormScaling().apply_(fixed)
    LearnedLayerNormScaling().apply_(learned)
    assert torch.allclose(fixed(TOKENS).logits, learned(TOKENS).logits, atol=1e-6)
    assert torch.equal(learned.model.layers[3].input_layernorm.weight, torch.full((32,), 0.5))
    assert torch.equal(fixed.model.layers[3].input_layernorm.weight, torch.ones(32))
    for model in (fixed, learned):  # one step of decay alone moves the two apart
        torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.0).zero_grad()
        model(TOKENS, labels=TOKENS).loss.backward()
    ours, theirs = (m.model.layers[3].input_layernorm.weight.grad for m in (fixed, learned))
    assert torch.allclose(ours, 0.5 * theirs, atol=1e-7)
    with pytest.raises(LowdimError, match="has a placement already"):
        LearnedLayerNormScaling().apply_(learned)


def test_the_learned_form_is_for_untrained_networks() -> None:
    model = stir(decoder("llama"))
    before = model(TOKENS).logits
    with pytest.raises(LowdimError, match="do not show that this network is untrained"):
        LearnedLayerNormScaling().apply_(model)
    assert torch.equal(model(TOKENS).logits, before)


def test_both_forms_at_once_are_refused() -> None:
    with pytest.raises(RecipeError, match="would scale it twice"):
        LearnedLayerNormScaling(over="lns").apply_(decoder("llama"))

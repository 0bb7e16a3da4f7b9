"""What is refused before any change, what is said of trained models, and what the probe leaves behind."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as t
from tests.nn.placement.decoders import TOKENS, decoder, stir
from torch import nn

from lowdim.core.errors import LowdimError
from lowdim.models.load import load, quiet
from lowdim.models.save import save_around
from lowdim.nn.placement import GPAS, LayerNormScaling, MixLN, PostLN, PreLN, ProRes, Sandwich, ScaledInit, jump
from lowdim.nn.residual.config import placement_of, stock
from lowdim.nn.residual.sites import Branch, find_sites

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}


def opt(dropout: float) -> Any:
    names = {"ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": dropout, "max_position_embeddings": 32}
    return t.OPTForCausalLM(t.OPTConfig(**SIZES, **names))


OTHERS: dict[str, tuple[Callable[[], Any], str]] = {
    "parallel": (lambda: t.GPTNeoXForCausalLM(t.GPTNeoXConfig(**SIZES)), "its branches are parallel"),
    "norms after": (lambda: t.Olmo2ForCausalLM(t.Olmo2Config(**SIZES)), "it has norms after its branches alone"),
    "one norm": (lambda: t.PhiForCausalLM(t.PhiConfig(**SIZES)), "its branches share one norm"),
    "a factor": (
        lambda: t.GraniteForCausalLM(t.GraniteConfig(**SIZES, residual_multiplier=0.5)),
        "a factor or a dropout stands between",
    ),
    "a dropout": (lambda: opt(0.1), "it does not simply add its branches to the stream|do not come in that order"),
    "no blocks": (
        lambda: t.MambaForCausalLM(t.MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2)),
        "norm",
    ),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_blocks_are_refused_with_the_reason(kind: str) -> None:
    torch.manual_seed(0)
    make, why = OTHERS[kind]
    model = make()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(LowdimError, match=f"(?s)has other norms than a placement can move: .*({why})"):
        MixLN(alpha=0.5).apply_(model)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    assert placement_of(model.config) is None


def test_trying_leaves_no_trace() -> None:
    model = decoder("gpt2")
    model.train()
    model.transformer.h[1].eval()
    model.activation_checkpointing_enable()
    modes = [module.training for module in model.modules()]
    hooks = [len(module._forward_hooks) for module in model.modules()]
    dice = torch.get_rng_state()
    sites = find_sites(model)
    assert [site.name for site in sites] == [f"transformer.h.{i}" for i in range(4)]
    assert {site.branches for site in sites} == {(Branch("attn", "ln_1"), Branch("mlp", "ln_2"))}
    assert torch.equal(torch.get_rng_state(), dice)
    assert [module.training for module in model.modules()] == modes
    assert all(block.gradient_checkpointing for block in model.transformer.h)
    assert [len(module._forward_hooks) for module in model.modules()] == hooks


def test_it_does_not_depend_on_the_weights() -> None:
    model = decoder("llama")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert [site.branches[0].before for site in find_sites(model)] == ["input_layernorm"] * 4


def test_twice_is_refused() -> None:
    model = decoder("llama")
    MixLN().apply_(model)
    before = model(TOKENS).logits
    for placement in (MixLN(), PostLN(), PreLN()):
        with pytest.raises(LowdimError, match=r"has a placement already \(MixLN\(alpha=0.25\)\)"):
            placement.apply_(model)
    assert torch.equal(model(TOKENS).logits, before)


def test_only_the_placement_that_is_there_folds() -> None:
    with pytest.raises(LowdimError, match=r"the model has no placement, not LayerNormScaling\(\)"):
        LayerNormScaling().fold_(decoder("llama"))
    model = decoder("llama")
    LayerNormScaling().apply_(model)
    with pytest.raises(LowdimError, match=r"the model has the placement LayerNormScaling\(\), not ProRes"):
        ProRes().fold_(model)
    LayerNormScaling().fold_(model)
    with pytest.warns(UserWarning, match="has been trained"):  # a folded model may get another one
        MixLN().apply_(model)


def test_it_is_for_models_of_transformers_as_they_are() -> None:
    for model in (nn.Linear(2, 2), torch.compile(decoder("llama"), backend="eager")):
        with pytest.raises(LowdimError, match="a placement is for a decoder of Transformers, got "):
            MixLN().apply_(model)  # type: ignore[arg-type]


def test_names_that_are_taken() -> None:
    model = decoder("llama")
    model.model.layers[1].gpas = nn.Identity()
    with pytest.raises(LowdimError, match=r"model.layers.1 has a gpas of its own"):
        GPAS().apply_(model)


def test_a_trained_model_jumps_and_it_is_said_and_measured() -> None:
    model = stir(decoder("llama"))
    with pytest.warns(UserWarning, match=r"has been trained, and MixLN\(alpha=0.25\) changes what it computes"):
        MixLN().apply_(model)
    model = stir(decoder("llama"))
    before = model(TOKENS, labels=TOKENS).loss.item()
    found = jump(model, MixLN(), [TOKENS])
    assert found.before == pytest.approx(before, rel=1e-5)
    assert found.after == pytest.approx(model(TOKENS, labels=TOKENS).loss.item(), rel=1e-5)
    assert abs(found.after - found.before) > 1e-3
    same = jump(stir(decoder("llama")), PreLN(), [TOKENS, TOKENS[:, :5]])
    assert same.before == same.after
    with pytest.raises(LowdimError, match="batches hold no token to predict"):
        jump(decoder("llama"), MixLN(), [])


def test_norms_that_a_block_loses_are_not_left_without_gradients() -> None:
    model = decoder("gemma3")
    before = len(list(model.parameters()))
    PostLN().apply_(model)
    assert len(list(model.parameters())) == before - 2 * 4
    model(TOKENS, labels=TOKENS).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_added_norms_begin_with_gain_1_and_match_the_model() -> None:
    for family, kind, value in (("llama", "LlamaRMSNorm", 1.0), ("gpt2", "LayerNorm", 1.0)):
        model = stir(decoder(family).bfloat16())
        with pytest.warns(UserWarning, match="has been trained"):
            Sandwich().apply_(model)
        block = model.transformer.h[0] if family == "gpt2" else model.model.layers[0]
        assert type(block.mlp_norm).__name__ == kind and block.mlp_norm.weight.dtype == torch.bfloat16
        assert bool((block.mlp_norm.weight == value).all())


def test_models_of_one_config_are_marked_apart(tmp_path: Path) -> None:
    first = decoder("llama")
    second = type(first)(first.config).eval()
    assert second.config is first.config
    MixLN().apply_(first)
    assert placement_of(first.config) == MixLN() and placement_of(second.config) is None
    assert first.model.config is first.config and first.model.layers[0].self_attn.config is first.config
    with quiet():
        second.save_pretrained(tmp_path)
        found = t.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(found(TOKENS).logits, second(TOKENS).logits)


def test_a_stock_model_of_a_placed_config_is_not_saved_as_a_placed_one(tmp_path: Path) -> None:
    placed = decoder("llama")
    MixLN().apply_(placed)
    made = t.AutoModelForCausalLM.from_config(placed.config).eval()
    for save in (made.save_pretrained, placed.config.save_pretrained, lambda to: save_around(made, None, to)):
        with pytest.raises(LowdimError, match=r"a model with MixLN\(alpha=0.25\), and no such model is being saved"):
            save(tmp_path / "out")
    with quiet():
        plain = t.AutoModelForCausalLM.from_config(stock(placed.config)).eval()
        plain.save_pretrained(tmp_path / "plain")
        MixLN().apply_(made)
        for name, model in (("placed", placed), ("copy", copy.deepcopy(placed)), ("made", made)):
            model.save_pretrained(tmp_path / name)
            assert torch.equal(load(tmp_path / name)(TOKENS).logits, model(TOKENS).logits)
        assert torch.equal(load(tmp_path / "plain")(TOKENS).logits, plain(TOKENS).logits)
    assert placement_of(placed.config) == MixLN()  # its own is untouched


def test_the_whole_of_a_composite_model_is_marked(tmp_path: Path) -> None:
    sizes = {**SIZES, "num_key_value_heads": 2, "head_dim": 8, "layer_types": ["sliding_attention", "full_attention"]}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = t.Gemma3Config(text_config=sizes, vision_config={**vision, "image_size": 28, "patch_size": 14})
    torch.manual_seed(0)
    model = t.Gemma3ForConditionalGeneration(config).eval()
    PostLN().apply_(model)
    decoder_config = model.model.language_model.config
    assert decoder_config is model.config.text_config
    with quiet():
        model.save_pretrained(tmp_path)
        for cls in (t.AutoModelForCausalLM, t.AutoModelForImageTextToText, t.Gemma3ForConditionalGeneration):
            with pytest.raises(Exception, match="lowdim"):
                cls.from_pretrained(tmp_path)
    assert torch.equal(load(tmp_path)(input_ids=TOKENS).logits, model(input_ids=TOKENS).logits)


def test_a_placement_that_no_checkpoint_could_name() -> None:
    class Mine(PostLN):
        pass

    with pytest.raises(LowdimError, match="Mine is not registered"):
        Mine().apply_(decoder("llama"))


def test_networks_whose_norms_have_no_gains_may_have_been_trained() -> None:
    torch.manual_seed(0)
    model = t.OlmoForCausalLM(t.OlmoConfig(**SIZES))
    with pytest.raises(LowdimError, match="do not show that this network is untrained"):
        ScaledInit().apply_(model)
    with pytest.warns(UserWarning, match="has been trained"):
        LayerNormScaling().apply_(model)
    with pytest.raises(LowdimError, match="input_layernorm has no gain that could take the factor"):
        LayerNormScaling().fold_(model)

"""Tiny random causal LMs, one per architecture, built on the fly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as t
from transformers import PreTrainedModel

VOCAB = 96


def _llama_like(name: str, **extra: Any) -> Callable[[], PreTrainedModel]:
    def build() -> PreTrainedModel:
        config = getattr(t, f"{name}Config")(
            vocab_size=VOCAB,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            max_position_embeddings=128,
            pad_token_id=0,
            **extra,
        )
        return _random(getattr(t, f"{name.replace('Text', '')}ForCausalLM")(config))

    return build


def _random(model: PreTrainedModel) -> PreTrainedModel:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.15 if parameter.dim() > 1 else 0.1
            offset = 1.0 if parameter.dim() == 1 and float(parameter.abs().sum()) > 0 else 0.0
            parameter.copy_(offset + scale * torch.randn(parameter.shape, generator=generator))
    model.tie_weights()
    return model.eval()


def _gpt2() -> PreTrainedModel:
    return _random(t.GPT2LMHeadModel(t.GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=3, n_head=4, n_positions=128)))


def _opt() -> PreTrainedModel:
    config = t.OPTConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        ffn_dim=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=128,
        word_embed_proj_dim=16,
        pad_token_id=0,
    )
    return _random(t.OPTForCausalLM(config))


def _neox() -> PreTrainedModel:
    config = t.GPTNeoXConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=128,
    )
    return _random(t.GPTNeoXForCausalLM(config))


def _phi() -> PreTrainedModel:
    config = t.PhiConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=128,
        pad_token_id=0,
    )
    return _random(t.PhiForCausalLM(config))


def _falcon() -> PreTrainedModel:
    config = t.FalconConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        multi_query=True,
        parallel_attn=True,
    )
    return _random(t.FalconForCausalLM(config))


def _bloom() -> PreTrainedModel:
    return _random(t.BloomForCausalLM(t.BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=3, n_head=4)))


ZOO: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": _llama_like("Llama", tie_word_embeddings=True),
    "llama-untied-bias": _llama_like("Llama", tie_word_embeddings=False, attention_bias=True, mlp_bias=True),
    "mistral": _llama_like("Mistral", sliding_window=8),
    "qwen2": _llama_like("Qwen2"),
    "qwen3": _llama_like("Qwen3"),
    "gemma3": _llama_like(
        "Gemma3Text",
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "mixtral": _llama_like("Mixtral", num_local_experts=4, num_experts_per_tok=2),
    "qwen3-moe": _llama_like("Qwen3Moe", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16),
    "opt": _opt,
    "gpt2": _gpt2,
    "gpt-neox": _neox,
    "phi": _phi,
    "falcon": _falcon,
    "bloom": _bloom,
}

"""Tiny random models of the families that the native engine runs, in every variation that it has to know."""

from __future__ import annotations

from typing import Any

import torch
import transformers as t
from transformers import PreTrainedModel

VOCAB = 96
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
    "rope_theta": 10000.0,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 10000.0}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"tie_word_embeddings": True}),
    "llama-biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-llama3": ("Llama", {"rope_parameters": LLAMA3}),
    "llama-linear": (
        "Llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}},
    ),
    "llama-yarn": ("Llama", {"rope_parameters": YARN}),
    "llama-one-kv-head": (
        "Llama",
        {"num_attention_heads": 6, "num_key_value_heads": 1, "head_dim": 10, "hidden_size": 36},
    ),
    "llama-all-kv-heads": (
        "Llama",
        {"num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 24, "hidden_size": 48},
    ),
    "llama-odd-sizes": (
        "Llama",
        {"hidden_size": 36, "intermediate_size": 77, "head_dim": 2, "vocab_size": 97, "rms_norm_eps": 1e-3},
    ),
    "llama-gelu": ("Llama", {"hidden_act": "gelu"}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral-window": ("Mistral", {"sliding_window": 8}),
    "qwen2": ("Qwen2", {}),
    "qwen2-window": (
        "Qwen2",
        {
            "use_sliding_window": True,
            "sliding_window": 9,
            "layer_types": ["full_attention", "sliding_attention"],
        },
    ),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "gemma": ("Gemma", {"hidden_act": "gelu_pytorch_tanh", "head_dim": 16}),
    "smollm3": ("SmolLM3", {"no_rope_layers": [1, 0]}),
    "granite": (
        "Granite",
        {
            "embedding_multiplier": 3.0,
            "attention_multiplier": 0.2,
            "residual_multiplier": 0.4,
            "logits_scaling": 2.5,
        },
    ),
}


def tiny(name: str, dtype: torch.dtype = torch.float32, **extra: Any) -> PreTrainedModel:
    """A model of two blocks; `extra` overrides its config."""
    family, special = VARIANTS[name]
    sizes = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": None,
        "tie_word_embeddings": False,
    }
    config = getattr(t, f"{family}Config")(**sizes | special | extra)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(t, f"{family}ForCausalLM")(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(0.2 * noise if parameter.dim() > 1 else parameter + 0.1 * noise)
    model.tie_weights()
    return model.to(dtype).eval()

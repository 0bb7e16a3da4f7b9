"""Tiny mixtures of experts, one per way of keeping and choosing them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as t
from tests.models.zoo import VOCAB
from transformers import PreTrainedModel

_BASE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_TWO_OF_FOUR = {"num_experts": 4, "num_experts_per_tok": 2}
_LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
_SLIDING = ["full_attention", "sliding_attention"]
_MLA = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
_DEEPSEEK = _MLA | {
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "n_shared_experts": 1,
    "first_k_dense_replace": 0,
    "n_group": 1,
    "topk_group": 1,
}
_LONGCAT = _MLA | {
    "head_dim": 8,
    "num_key_value_heads": 4,
    "num_hidden_layers": 6,
    "ffn_hidden_size": 48,
    "expert_ffn_hidden_size": 16,
    "n_routed_experts": 4,
    "zero_expert_num": 2,
    "moe_topk": 2,
}


def _dbrx() -> Any:
    return t.DbrxConfig(
        vocab_size=VOCAB,
        d_model=32,
        n_heads=4,
        n_layers=2,
        max_seq_len=64,
        attn_config={"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4},
        ffn_config={"ffn_hidden_size": 16, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 32},
    )


CONFIGS: dict[str, Callable[[], Any]] = {
    "mixtral": lambda: t.MixtralConfig(**_BASE, **_LOCAL),
    "qwen2-moe": lambda: t.Qwen2MoeConfig(
        **_BASE, **_TWO_OF_FOUR, moe_intermediate_size=16, shared_expert_intermediate_size=16
    ),
    "qwen3-moe": lambda: t.Qwen3MoeConfig(**_BASE, **_TWO_OF_FOUR, head_dim=8, moe_intermediate_size=16),
    "olmoe": lambda: t.OlmoeConfig(**_BASE, **_TWO_OF_FOUR),
    "deepseek-v3": lambda: t.DeepseekV3Config(**_BASE | _DEEPSEEK),
    "gpt-oss": lambda: t.GptOssConfig(
        **_BASE, **_LOCAL, head_dim=8, layer_types=_SLIDING, rope_parameters={"rope_type": "default", "rope_theta": 1e4}
    ),
    "llama4": lambda: t.Llama4TextConfig(
        **_BASE, head_dim=8, intermediate_size_mlp=48, num_local_experts=4, num_experts_per_tok=1, moe_layers=[0, 1]
    ),
    "hunyuan": lambda: t.HunYuanMoEV1Config(**_BASE, head_dim=8, num_experts=4, moe_topk=2),
    "jetmoe": lambda: t.JetMoeConfig(**_BASE, **_LOCAL, kv_channels=16),
    "nemotron-h": lambda: t.NemotronHConfig(
        **_BASE,
        head_dim=8,
        layers_block_type=["attention", "moe"],
        time_step_limit=(0.0, 10.0),
        n_routed_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        moe_shared_expert_intermediate_size=16,
        moe_latent_size=24,
        n_group=1,
        topk_group=1,
    ),
    "longcat": lambda: t.LongcatFlashConfig(**_BASE | _LONGCAT),
    "dbrx": _dbrx,
}


@torch.no_grad()
def mixture(kind: str) -> PreTrainedModel:
    """Return a mixture with random weights, the same on every machine, whose experts run one after another."""
    model: PreTrainedModel = t.AutoModelForCausalLM.from_config(CONFIGS[kind]()).eval()
    model.config._experts_implementation = "eager"
    source = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.copy_(0.5 / parameter.shape[-1] ** 0.5 * torch.randn(parameter.shape, generator=source))
        else:
            scale = 1.0 if bool((parameter == 1).all()) else 0.0
            parameter.copy_(scale + 0.1 * torch.randn(parameter.shape, generator=source))
    return model

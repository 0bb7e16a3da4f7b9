"""A tiny config of every causal LM of the installed Transformers, made from its defaults by the names of fields."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CLASSES

VOCAB = 64
TYPES: dict[str, str] = {kind: found if isinstance(found, str) else found[0] for kind, found in CLASSES.items()}

_BY_VALUE: dict[int, tuple[str, ...]] = {
    VOCAB: (
        "vocab_size",
        "decoder_vocab_size",
        "vocab_size_per_layer_input",
        "unpadded_vocab_size",
    ),
    32: (
        "hidden_size",
        "d_model",
        "n_embd",
        "emb_dim",
        "embedding_size",
        "embedding_dim",
        "word_embed_proj_dim",
        "attention_hidden_size",
        "lru_width",
        "input_embedding_size",
        "output_embedding_size",
        "backbone_hidden_size",
        "pronunciation_embed_dim",
        "shape_embed_dim",
        "ple_embed_dim",
        "mamba_d_ssm",
        "num_hash_buckets",
    ),
    48: (
        "intermediate_size",
        "ffn_dim",
        "dff",
        "dim_ff",
        "d_inner",
        "decoder_ffn_dim",
        "encoder_ffn_dim",
        "ffn_hidden_size",
        "feed_forward_size",
        "intermediate_size_mlp",
        "dense_intermediate_size",
    ),
    16: (
        "moe_intermediate_size",
        "shared_expert_intermediate_size",
        "shared_experts_intermediate_size",
        "moe_shared_expert_intermediate_size",
        "shared_intermediate_size",
        "expert_ffn_hidden_size",
        "hidden_size_per_layer_input",
        "q_lora_rank",
        "kv_lora_rank",
        "o_lora_rank",
        "router_hidden_size",
        "adapter_rank",
        "mamba_chunk_size",
        "chunk_size",
        "index_block_size",
        "block_size",
        "hc_lowrank",
        "rel_extent",
    ),
    8: (
        "head_dim",
        "swa_head_dim",
        "attention_head_dim",
        "attention_head_size",
        "kv_channels",
        "dim_head",
        "d_head",
        "qk_nope_head_dim",
        "qk_rope_head_dim",
        "v_head_dim",
        "index_head_dim",
        "linear_key_head_dim",
        "linear_value_head_dim",
        "linear_head_dim",
        "rotary_dim",
        "mamba_d_state",
        "ssm_state_size",
        "state_size",
        "mamba_d_head",
        "mamba_head_dim",
        "mamba_headdim",
        "sliding_window",
        "sliding_window_size",
        "attention_window_size",
        "window_size",
        "local_attention",
        "attention_chunk_size",
        "index_topk",
        "laurel_rank",
        "gated_norm_rank",
        "d_rel",
        "mamba_n_heads",
        "mamba_num_heads",
        "dim_model_base",
        "query_pre_attn_scalar",
    ),
    4: (
        "num_attention_heads",
        "n_head",
        "n_heads",
        "attention_heads",
        "num_heads",
        "swa_num_attention_heads",
        "decoder_attention_heads",
        "encoder_attention_heads",
        "num_decoder_attention_heads",
        "num_encoder_attention_heads",
        "linear_num_value_heads",
        "linear_num_heads",
        "num_experts",
        "num_local_experts",
        "n_routed_experts",
        "moe_num_experts",
        "mamba_dt_rank",
        "time_step_rank",
        "keep_window_size",
    ),
    3: ("num_layers", "n_layer", "n_layers", "decoder_layers", "num_decoder_layers", "num_blocks"),
    2: (
        "num_key_value_heads",
        "num_kv_heads",
        "swa_num_key_value_heads",
        "linear_num_key_heads",
        "num_query_groups",
        "index_n_heads",
        "index_topk_blocks",
        "num_experts_per_tok",
        "num_experts_per_token",
        "moe_topk",
        "moe_k",
        "zero_expert_num",
        "mamba_n_groups",
        "n_mamba_heads",
        "encoder_layers",
        "num_encoder_layers",
        "depth",
        "max_window_layers",
        "altup_num_inputs",
        "o_groups",
        "n_layers_per_attn_res_block",
        "num_mem_blocks",
    ),
    1: ("n_groups", "n_group", "topk_group", "num_expert_group", "first_k_dense_replace", "num_dense_layers"),
    0: ("pad_token_id", "max_prompt"),
    128: (
        "max_position_embeddings",
        "n_positions",
        "n_ctx",
        "max_seq_len",
        "context_length",
        "model_max_length",
        "original_max_position_embeddings",
    ),
}
SIZES = {name: value for value, names in _BY_VALUE.items() for name in names}
SIZES |= {"bos_token_id": 1, "eos_token_id": 2, "image_size": 28, "patch_size": 14}

_HEADS = {"head_dim": 8}
_GEMMA4 = {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}
_DOTS3 = {
    "num_key_value_heads": 4,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 4,
    "swa_q_lora_rank": 16,
    "swa_kv_lora_rank": 16,
    "swa_head_dim": 16,
    "swa_qk_nope_head_dim": 8,
    "swa_v_head_dim": 8,
}
_QWEN4 = {
    "eos_token_id": 2,
    "ngram_vocab_size_base": 64,
    "split_ngram_parts": 2,
    "heads_per_ngram": 2,
    "ple_layer_ids": [2],
} | dict(
    zip(("indexer_n_heads", "indexer_kv_heads", "indexer_head_dim", "indexer_budget"), (2, 1, 8, 8), strict=True),
    indexer_compress_ratio=2,
)
PER_KIND: dict[str, dict[str, Any]] = {
    "blt": {
        "encoder_hash_byte_group_vocab": 64,
        "patching_mode": "static",
        "vocab_size": 260,
    },
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 48},
    },
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "dots3_note": {"text_config": _DOTS3, "audio_config": {"adapter_in_dim": 32}},
    "dots3_note_text": _DOTS3,
    "falcon_h1": {"mamba_n_heads": 4},
    "gemma3n_text": {"num_kv_shared_layers": 1},
    "gemma4_assistant": {"text_config": _GEMMA4},
    "hunyuan_v1_dense": _HEADS,
    "hunyuan_v1_moe": _HEADS | {"num_experts": 4, "moe_topk": 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"]},
    "mamba2": {"num_heads": 8},
    "ministral": _HEADS,
    "nemotron": _HEADS | {"num_key_value_heads": 2},
    "qwen4_exp": {"text_config": _QWEN4},
    "qwen4_exp_text": _QWEN4,
    "zamba2": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "num_key_value_heads": 4,
    },
    "zamba": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "num_key_value_heads": 4,
    },
    "reformer": {"is_decoder": True},
}
"""What the names of fields do not tell, by model type."""


def tiny_config(kind: str) -> PreTrainedConfig:
    """Return the tiny config of a model type.

    Raises:
        Exception: whatever Transformers says against it.
    """
    return _shrunk(CONFIG_MAPPING[kind], PER_KIND.get(kind, {}))


def _shrunk(made: type[PreTrainedConfig], extra: Mapping[str, Any]) -> PreTrainedConfig:
    try:
        default = made()
    except Exception:  # the defaults of a type need not agree with each other
        default = made(**extra)
    values: dict[str, Any] = {}
    lists: dict[str, list[Any]] = {}
    layers = getattr(default, "num_hidden_layers", None)
    for name, value in vars(default).items():
        if isinstance(value, PreTrainedConfig):
            values[name] = _shrunk(type(value), extra.get(name, {})).to_dict()
        elif isinstance(value, list | tuple) and layers and len(value) == layers:
            lists[name] = [SIZES.get(name, v) if isinstance(v, int) and v > 8 else v for v in value]
        elif name in SIZES and isinstance(value, int | None) and not isinstance(value, bool) and _known(name, value):
            values[name] = min(SIZES[name], value) if name not in ("pad_token_id",) and value else SIZES[name]
    if "kv_lora_rank" in vars(default):  # latent attention has as many keys as queries
        values["num_key_value_heads"] = values["num_attention_heads"]
    chosen = _covering(lists, layers or 3)
    values |= {name: [column[i] for i in chosen] for name, column in lists.items()}
    if layers:
        values["num_hidden_layers"] = len(chosen)
    configs = {name for name, value in vars(default).items() if isinstance(value, PreTrainedConfig)}
    values |= {name: value for name, value in extra.items() if name not in configs}
    return made(**values)


def _known(name: str, value: int | None) -> bool:
    return value is not None or name == "pad_token_id"


def _covering(lists: Mapping[str, list[Any]], layers: int) -> list[int]:
    """Return three layers or more (four at most) that show every kind of layer there is."""
    rows = list(zip(*lists.values(), strict=True)) if lists else [()] * layers
    first = [i for i, row in enumerate(rows) if row not in rows[:i]][:4]
    rest = [i for i in range(layers) if i not in first]
    return sorted((first + rest[: max(0, 3 - len(first))]) or [0, 1, 2])


@torch.no_grad()
def randomise(model: nn.Module) -> None:
    """Give weights that tell every layer and channel apart, the same on every machine."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in _each(model):
        if parameter.dim() > 1:
            scale = 0.6 / max(1, parameter.shape[-1]) ** 0.5
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
        elif not name.endswith(("A_log", "dt_bias", "a_log")):
            offset = 1.0 if float(parameter.float().abs().sum()) > 0 else 0.0
            parameter.copy_(offset + 0.1 * torch.randn(parameter.shape, generator=generator))


def _each(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    yield from model.named_parameters()

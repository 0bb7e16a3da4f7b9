"""What a config becomes by the keys of a GGUF file's metadata, without the file."""

from __future__ import annotations

import re
from typing import Any

import pytest
import transformers as t
from transformers.integrations.gguf.gguf_config_mapping import GGUF_CONFIG_ARCHS

from lowdim.core.errors import CheckpointError
from lowdim.models.disk.gguf_facts import Facts, complete

QWEN35: dict[str, Any] = {
    "block_count": 4,
    "context_length": 256,
    "embedding_length": 32,
    "feed_forward_length": 48,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.key_length": 8,
    "attention.value_length": 8,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "full_attention_interval": 4,
    "ssm.conv_kernel": 4,
    "ssm.state_size": 8,
    "ssm.group_count": 2,
    "ssm.time_step_rank": 4,
    "ssm.inner_size": 32,
    "rope.freq_base": 1e6,
    "rope.dimension_count": 4,
    "rope.dimension_sections": [1, 1, 0, 0],
}
EXPERTS = {
    "expert_count": 4,
    "expert_used_count": 2,
    "expert_feed_forward_length": 16,
    "expert_shared_feed_forward_length": 16,
}
LFM2: dict[str, Any] = {
    **{key: value for key, value in QWEN35.items() if key.startswith(("block", "context", "embed", "feed"))},
    "attention.head_count": 4,
    "attention.head_count_kv": [0, 2, 0, 2],
    "attention.layer_norm_rms_epsilon": 1e-5,
    "rope.freq_base": 1e6,
    "shortconv.l_cache": 3,
    "vocab_size": 96,
}
BY_FUNCTION = {"qwen35": QWEN35, "qwen35moe": QWEN35 | EXPERTS, "lfm2": LFM2}


def completed(architecture: str, said: dict[str, Any]) -> tuple[Any, list[str]]:
    """Return the config of an architecture that a function of Transformers reads, and the keys that go unread."""
    whole = BY_FUNCTION[architecture] | said
    metadata = {f"{architecture}.{key}": value for key, value in whole.items()} | {"tokenizer.ggml.tokens": 96}
    fields = GGUF_CONFIG_ARCHS[architecture](metadata, ())
    config = t.AutoConfig.for_model(fields.pop("model_type"), **fields)
    return config, complete(config, Facts(architecture, whole, {}, {}, {}))


@pytest.mark.parametrize("architecture", GGUF_CONFIG_ARCHS)
def test_what_a_function_of_transformers_reads_is_read(architecture: str) -> None:
    config, unread = completed(architecture, {"rope.scaling.type": "none", "logit_scale": 1.0})
    assert unread == []
    fresh = completed(architecture, {})[0]
    assert config.to_dict() == fresh.to_dict()


@pytest.mark.parametrize("architecture", GGUF_CONFIG_ARCHS)
@pytest.mark.parametrize(
    "said", [{"attn_logit_softcapping": 30.0}, {"logit_scale": 0.5}, {"attention.sliding_window": 64}], ids=str
)
def test_what_it_does_not_read_is_refused(architecture: str, said: dict[str, Any]) -> None:
    (key, value) = next(iter(said.items()))
    with pytest.raises(CheckpointError, match=rf"says {architecture}\.{re.escape(key)} = {value}, and .* no field"):
        completed(architecture, said)


@pytest.mark.parametrize("architecture", GGUF_CONFIG_ARCHS)
def test_what_it_does_not_read_is_noted(architecture: str) -> None:
    said = {"warp_factor": 9.0, "expert_weights_norm": True, "use_parallel_residual": True}
    assert completed(architecture, said)[1] == [f"{architecture}.{key}" for key in sorted(said)]


def test_what_has_a_field_is_not_noted() -> None:
    config = t.CONFIG_MAPPING["qwen2_moe"]()
    said = {"expert_weights_norm": True, "expert_weights_scale": 1.0, "attention.layer_norm_rms_epsilon": 1e-3}
    assert complete(config, Facts("qwen2moe", said, {}, {}, {})) == []
    assert config.norm_topk_prob is True


@pytest.mark.parametrize(
    ("kind", "key", "said", "field", "value"),
    [
        ("cohere", "logit_scale", 1.0, "logit_scale", 1.0),  # by default 0.0625
        ("granite", "logit_scale", 0.0, "logits_scaling", 1.0),
        ("gemma2", "final_logit_softcapping", 0.0, "final_logit_softcapping", None),  # by default 30
        ("olmo", "attention.clamp_kqv", 0.0, "clip_qkv", None),
        ("deepseek_v3", "expert_weights_scale", 0.0, "routed_scaling_factor", 1.0),  # by default 2.5
    ],
)
def test_a_value_that_changes_nothing_is_not_the_default_of_the_config(
    kind: str, key: str, said: float, field: str, value: float | None
) -> None:
    config = t.CONFIG_MAPPING[kind]()
    setattr(config, field, getattr(config, field) or 2.5)
    complete(config, Facts(kind, {key: said}, {}, {}, {}))
    assert getattr(config, field) == value

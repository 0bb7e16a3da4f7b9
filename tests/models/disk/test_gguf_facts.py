"""GGUF files of models whose numbers depend on what the metadata says: the converted model computes the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf as library
import numpy as np
import pytest
import torch
import transformers as t

from lowdim.core.errors import CheckpointError
from lowdim.models.disk import gguf
from lowdim.models.disk.source import resolve
from lowdim.models.load import load, quiet

VOCAB, WIDTH, HEADS = 96, 32, 4
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 10000.0}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_theta": 500000.0,
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOWDIM_CACHE", str(tmp_path / "cache"))


def made(kind: str, **extra: Any) -> Any:
    known = t.CONFIG_MAPPING[kind]
    fields = set(known.__dataclass_fields__)
    config = known(**{key: value for key, value in SIZES.items() if key in fields} | extra)
    config._attn_implementation = "eager"
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(0)
        model = t.AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape) * (0.3 if parameter.dim() > 1 else 0.1))
    model.tie_weights()
    return model


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Order rows as llama.cpp rotates them for its architecture "llama"."""
    rows, cols = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, cols).swapaxes(1, 2).reshape(rows, cols)


def write(
    path: Path,
    model: Any,
    architecture: str,
    said: dict[str, Any] | None = None,
    tensors: dict[str, np.ndarray] | None = None,
) -> Path:
    """Write a model as llama.cpp's converters do."""
    config, writer = model.config, library.GGUFWriter(str(path), architecture)
    writer.add_name("tiny")
    facts = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "vocab_size": VOCAB,
    } | (said or {})
    for key, value in facts.items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        add[type(value)](f"{architecture}.{key}", value)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    letters = [chr(33 + i) for i in range(VOCAB - 5)]
    writer.add_token_list(["<|endoftext|>", "<|im_start|>", "<|im_end|>", *letters, "ab", "cd"])
    writer.add_token_types([3] * 3 + [1] * (VOCAB - 3))
    writer.add_token_merges(["a b", "c d"])
    arch = next(key for key, name in library.MODEL_ARCH_NAMES.items() if name == architecture)
    names = library.get_tensor_name_map(arch, config.num_hidden_layers)
    for key, tensor in model.state_dict().items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        value = tensor.float().numpy()
        if architecture == "llama" and key.endswith(("q_proj.weight", "k_proj.weight")):
            value = interleaved(value, config.num_attention_heads if "q_proj" in key else config.num_key_value_heads)
        if architecture.startswith("gemma") and "norm" in key:
            value = value + 1
        stem, _, end = key.rpartition(".")
        writer.add_tensor(f"{names.get_name(stem)}.{end}", np.ascontiguousarray(value))
    for key, value in (tensors or {}).items():
        writer.add_tensor(key, value.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def difference(model: Any, file: Path, length: int = 48) -> float:
    tokens = torch.randint(3, VOCAB, (1, length), generator=torch.Generator().manual_seed(1))
    converted = load(resolve(str(file), dtype="float32").path)
    converted.set_attn_implementation("eager")  # others leave soft caps out
    with torch.no_grad():
        return float((model(tokens).logits - converted(tokens).logits).abs().max())


def divisors(model: Any, long: bool = False) -> np.ndarray:
    """Return what the plain rotary frequencies of a model are divided by."""
    rope = model.config.rope_parameters
    width = int(WIDTH // HEADS * rope.get("partial_rotary_factor", 1.0))
    plain = rope["rope_theta"] ** (-np.arange(0, width, 2) / width)
    return plain / model.model.rotary_emb.inv_freq.double().numpy()


LONG = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.3, 2.0],
    "long_factor": [1.0, 2.0, 3.0, 4.0],
    "rope_theta": 10000.0,
    "original_max_position_embeddings": 32,
    "attention_factor": 1.2,
}
SCALING = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 32}
PHI_FACTORS = {f"rope_factors_{end}.weight": np.array(LONG[f"{end}_factor"]) for end in ("short", "long")}
LONG_SAID = {"rope.scaling.original_context_length": 32, "rope.scaling.attn_factor": 1.2, "rope.dimension_count": 8}
Case = tuple[Callable[[], Any], str, dict[str, Any], dict[str, np.ndarray]]
CASES: dict[str, Case] = {
    "plain llama": (lambda: made("llama"), "llama", {"rope.freq_base": 10000.0, "rope.dimension_count": 8}, {}),
    "yarn in qwen2": (lambda: made("qwen2", rope_parameters=YARN), "qwen2", SCALING, {}),
    "yarn in qwen3": (
        lambda: made("qwen3", head_dim=16, rope_parameters=YARN),
        "qwen3",
        SCALING | {"attention.key_length": 16},
        {},
    ),
    "yarn with its own attention factor": (
        lambda: made("llama", rope_parameters=YARN | {"attention_factor": 0.5 * (1 + 0.1 * float(np.log(4.0)))}),
        "llama",
        SCALING | {"rope.scaling.attn_factor": 0.5, "rope.dimension_count": 8},
        {},
    ),
    "linear": (
        lambda: made("qwen2", rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}),
        "qwen2",
        {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
        {},
    ),
    "an old linear key": (
        lambda: made("llama", rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}),
        "llama",
        {"rope.scale_linear": 2.0, "rope.dimension_count": 8},
        {},
    ),
    "soft caps of gemma2": (
        lambda: made(
            "gemma2",
            head_dim=8,
            query_pre_attn_scalar=8,
            sliding_window=16,
            attn_logit_softcapping=2.0,
            final_logit_softcapping=0.5,
        ),
        "gemma2",
        {
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 0.5,
            "attention.key_length": 8,
            "attention.sliding_window": 16,
        },
        {},
    ),
    "no soft caps": (
        lambda: made(
            "gemma2",
            head_dim=8,
            query_pre_attn_scalar=8,
            sliding_window=16,
            attn_logit_softcapping=None,
            final_logit_softcapping=None,
        ),
        "gemma2",
        {
            "attn_logit_softcapping": 0.0,
            "final_logit_softcapping": 0.0,
            "attention.key_length": 8,
            "attention.sliding_window": 16,
        },
        {},
    ),
    "gemma3, its far layers stretched": (
        lambda: made(
            "gemma3_text",
            head_dim=8,
            query_pre_attn_scalar=8,
            sliding_window=16,
            layer_types=["sliding_attention", "full_attention"],
            rope_parameters={
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
        ),
        "gemma3",
        {
            "attention.key_length": 8,
            "attention.sliding_window": 16,
            "rope.freq_base": 1e6,
            "rope.scaling.type": "linear",
            "rope.scaling.factor": 8.0,
        },
        {},
    ),
    "phi3, factors one by one": (
        lambda: made("phi3", rope_parameters=LONG, original_max_position_embeddings=32),
        "phi3",
        LONG_SAID,
        PHI_FACTORS,
    ),
    "a sliding window": (
        lambda: made("phi3", sliding_window=8),
        "phi3",
        {"attention.sliding_window": 8, "rope.dimension_count": 8},
        {},
    ),
    "part of a head turned": (
        lambda: made(
            "phi3", rope_parameters={"rope_theta": 10000.0, "rope_type": "default", "partial_rotary_factor": 0.5}
        ),
        "phi3",
        {"rope.dimension_count": 4},
        {},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_logits_are_those_of_the_original(case: str, tmp_path: Path) -> None:
    make, architecture, said, tensors = CASES[case]
    model = make()
    file = write(tmp_path / "m.gguf", model, architecture, said, tensors)
    if case == "gemma3, its far layers stretched":
        path = resolve(str(file), dtype="float32").path  # which layers are which is not in the file
        config = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps(config | {"layer_types": model.config.layer_types}))
    assert difference(model, file) < 2e-4


@pytest.mark.parametrize("length", [24, 48])
def test_factors_of_llama_3(tmp_path: Path, length: int) -> None:
    model = made("llama", rope_parameters=LLAMA3)
    said = {"rope.freq_base": 500000.0, "rope.dimension_count": 8}
    file = write(tmp_path / "m.gguf", model, "llama", said, {"rope_freqs.weight": divisors(model)})
    assert difference(model, file, length) < 2e-4
    found = json.loads((resolve(str(file), dtype="float32").path / "config.json").read_text())
    assert found["rope_parameters"]["rope_type"] == "llama3"


def test_factors_that_follow_no_rule(tmp_path: Path) -> None:
    odd = [1.0, 1.5, 1.2, 7.0]
    said = {"rope_type": "longrope", "short_factor": odd, "long_factor": odd, "rope_theta": 10000.0}
    model = made("llama", rope_parameters=said | {"original_max_position_embeddings": 256, "attention_factor": 1.0})
    facts = {"rope.dimension_count": 8}
    file = write(tmp_path / "m.gguf", model, "llama", facts, {"rope_freqs.weight": np.array(odd)})
    assert difference(model, file) < 2e-4


REFUSED: dict[str, tuple[str, dict[str, Any], dict[str, np.ndarray], str]] = {
    "a soft cap": ("llama", {"attn_logit_softcapping": 30.0}, {}, r"llama\.attn_logit_softcapping = 30\.0"),
    "a scale of the logits": ("qwen2", {"logit_scale": 0.0625}, {}, r"qwen2\.logit_scale = 0\.0625"),
    "a scale of the embedding": ("llama", {"embedding_scale": 12.0}, {}, r"embedding_scale = 12\.0"),
    "a scale of what is added": ("llama", {"residual_scale": 0.22}, {}, "residual_scale"),
    "a scale of attention": ("llama", {"attention.scale": 0.015625}, {}, r"attention\.scale"),
    "a window": ("llama", {"attention.sliding_window": 4096}, {}, r"attention\.sliding_window = 4096"),
    "both ways": ("llama", {"attention.causal": False}, {}, r"attention\.causal = False"),
    "clamped": ("qwen2", {"attention.clamp_kqv": 8.0}, {}, r"attention\.clamp_kqv"),
    "experts": ("llama", {"expert_count": 8, "expert_used_count": 2}, {}, r"expert_count = 8"),
    "an unknown stretch": ("llama", {"rope.scaling.type": "longrope"}, {}, r"rope\.scaling\.type = 'longrope'"),
    "a multiplier of yarn": ("llama", {"rope.scaling.yarn_log_multiplier": 0.1}, {}, "yarn_log_multiplier"),
    "stretched twice": (
        "llama",
        SCALING,
        {"rope_freqs.weight": np.ones(4)},
        r"rope\.scaling\.type = 'yarn', and it has tensors of rotary factors as well",
    ),
    "factors of another width": ("llama", {}, {"rope_freqs.weight": np.ones(5)}, "do not fit 4 rotary frequencies"),
    "a bias": (
        "llama",
        {},
        {"blk.0.attn_q.bias": np.ones(WIDTH)},
        "32 of the file's .* numbers have no place in Llama",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_config_cannot_hold_is_refused_by_name(case: str, tmp_path: Path) -> None:
    architecture, said, tensors, words = REFUSED[case]
    dims = {"rope.dimension_count": 8}
    file = write(tmp_path / "m.gguf", made(architecture), architecture, dims | said, tensors)
    with pytest.raises(CheckpointError, match=rf"cannot convert .*m\.gguf: .*{words}"):
        resolve(str(file))


def test_neutral_values_change_nothing(tmp_path: Path) -> None:
    model = made("llama")
    said = {"logit_scale": 1.0, "residual_scale": 0.0, "attention.causal": True, "rope.scaling.type": "none"}
    said |= {"attention.clamp_kqv": 0.0, "expert_count": 0, "rope.dimension_count": 8}
    assert difference(model, write(tmp_path / "m.gguf", model, "llama", said)) < 2e-4


def test_weights_that_the_file_lacks_are_not_made_up(tmp_path: Path) -> None:
    model = made("llama")
    del model.model.layers[1].mlp.up_proj
    file = write(tmp_path / "m.gguf", model, "llama", {"rope.dimension_count": 8})
    with pytest.raises(CheckpointError, match=r"nothing that fits 1 weights of the model, first model\.layers\.1\.mlp"):
        resolve(str(file))


def test_special_tokens_are_those_of_the_file(tmp_path: Path) -> None:
    file = write(tmp_path / "m.gguf", made("phi3"), "phi3", {"rope.dimension_count": 8})
    config = json.loads((gguf.convert_gguf(file, "float32")[0] / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (1, 2, None)


def test_what_nobody_understands_is_a_line_of_the_record(tmp_path: Path) -> None:
    from tests.prune import tiny

    from lowdim.prune.api import prune

    said = {"rope.dimension_count": 8, "warp_factor": 9.0}
    file = write(tmp_path / "m.gguf", made("llama"), "llama", said)
    result = prune(str(file), tiny.recipe(method="magnitude"), out=tmp_path / "out")
    assert [entry["layer"] for entry in result.manifest["fallbacks"]] == ["llama.warp_factor"]
    assert not (tmp_path / "out" / "gguf.json").exists()


NOTED: dict[str, tuple[str, Any]] = {
    "expert_weights_norm": ("llama", True),
    "use_parallel_residual": ("qwen2", True),
    "attention.layer_norm_epsilon": ("phi3", 1e-3),
}


@pytest.mark.parametrize("key", NOTED)
def test_what_may_change_numbers_and_has_no_field_is_noted(key: str, tmp_path: Path) -> None:
    architecture, value = NOTED[key]
    said = {"rope.dimension_count": 8, "attention.key_length": 8, key: value}
    file = write(tmp_path / "m.gguf", made(architecture), architecture, said)
    assert list(resolve(str(file)).notes) == [f"{architecture}.{key}"]

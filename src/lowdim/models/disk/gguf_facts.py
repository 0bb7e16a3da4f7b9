"""What a GGUF file says of its model beside the weights, and the config that says the same.

Transformers reads a few keys of a file's metadata, architecture by architecture. What else the file says is put into
the config here; what no field of it can hold is refused where it changes numbers, and noted where that is not known.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from transformers.integrations.ggml import GGUF_CONFIG_MAPPING
from transformers.integrations.gguf.gguf_config_mapping import GGUF_CONFIG_ARCHS
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

from lowdim.core.errors import CheckpointError

_FIELDS = {
    "attention.key_length": "head_dim",
    "attention.scale": "attention_multiplier",
    "attention.sliding_window": "sliding_window",
    "attention.clamp_kqv": "clip_qkv",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logit_scale|logits_scaling",
    "attention.layer_norm_epsilon": "layer_norm_eps|layer_norm_epsilon|norm_epsilon|norm_eps",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps|layer_norm_epsilon|norm_epsilon|norm_eps",
    "context_length": "max_position_embeddings",
    "expert_count": "num_experts|num_local_experts",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
    "expert_used_count": "num_experts_per_tok",
    "expert_weights_norm": "norm_topk_prob",
    "expert_weights_scale": "routed_scaling_factor",
    "use_parallel_residual": "use_parallel_residual",
}
"""Keys, and the fields of configs that hold the same; the first that the config has."""
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0, 8.0),
    "attention.causal": (True,),
    "attention.sliding_window": (0,),
    "attn_logit_softcapping": (0.0,),
    "final_logit_softcapping": (0.0,),
    "embedding_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "logit_scale": (0.0, 1.0),
    "attention.scale": (0.0,),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "expert_shared_count": (0,),
    "expert_weights_scale": (0.0, 1.0),
    "router_logit_softcapping": (0.0,),
    "rope.scaling.yarn_log_multiplier": (0.0,),
    "attention.temperature_scale": (0.0,),
    "expert_gating_func": (0, 1),
    "rope.scaling.alpha": (0.0, 1.0),
}
"""Keys that change numbers, and the values with which they change none."""
_IDLE: dict[str, object] = {
    "attention.clamp_kqv": None,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "embedding_scale": 1.0,
    "residual_scale": 1.0,
    "logit_scale": 1.0,
    "expert_weights_scale": 1.0,
}
"""What a config says of the same, whose own default may change numbers."""
_READ = {
    *("context_length", "block_count", "embedding_length", "feed_forward_length", "vocab_size", "tensor_data_layout"),
    *("pooling_type", "attention.head_count", "attention.head_count_kv", "attention.key_length"),
    *("attention.value_length", "expert_feed_forward_length", "expert_shared_feed_forward_length"),
    *("attention.key_length_swa", "attention.value_length_swa"),
    *("rope.freq_base", "rope.freq_base_swa"),
    *("rope.dimension_count", "rope.dimension_count_swa", "rope.dimension_sections", "rope.scale_linear"),
    *("rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length", "rope.scaling.finetuned"),
    *("rope.scaling.attn_factor", "rope.scaling.yarn_attn_factor", "rope.scaling.yarn_ext_factor"),
    *("rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow"),
}
"""Keys that are read elsewhere, or that the shapes of the tensors say again."""
_FACTORS = ("rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight")
_TOKENS = {"bos": "bos", "eos": "eos", "pad": "padding"}
_AS_GPT2 = {
    *("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling", "gigachat", "a.x-4.0", "mellum"),
    *("jina-es", "jina-de", "jina-v1-en", "jina-v2-es", "jina-v2-de", "jina-v2-code", "roberta-bpe", "modern-bert"),
}
"""Ways to cut a text that are GPT-2's, which Transformers takes where it does not know a name."""
_BY_DIGITS = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"}
"""Those that are GPT-2's, between digits as well."""
_WHOLE = {
    *("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"),
    "tekken",
}
"""Those whose pieces are one token each where the vocabulary has it, whatever the merges would make of them."""
_QUERY_SCALARS = {"gemma2": 46, "gemma3": 62}
"""Blocks of the one size of each of these architectures that scales queries by the width of a head's share."""


@dataclass(frozen=True)
class Facts:
    """A file's metadata of its own architecture, the prefix taken off, and its tensors.

    Attributes:
        architecture: llama.cpp's name.
        said: keys and values.
        tokens: ids of the tokens that begin, end and pad a text, by the config's names for them.
        sizes: number of entries of every tensor.
        factors: what rotary frequencies are divided by, by the name of the tensor.
        split: how a text is cut before bytes are merged; ``None`` of a tokenizer that merges no bytes.
    """

    architecture: str
    said: Mapping[str, Any]
    tokens: Mapping[str, int | None]
    sizes: Mapping[str, int]
    factors: Mapping[str, np.ndarray]
    split: str | None = None

    @classmethod
    def read(cls, file: Path) -> Facts:
        """Read a file's header."""
        reader = GGUFReader(file)
        name = str(reader.fields["general.architecture"].contents())
        prefix = f"{name}."
        said = {k.removeprefix(prefix): f.contents() for k, f in reader.fields.items() if k.startswith(prefix)}
        ids = {f"{end}_token_id": reader.fields.get(f"tokenizer.ggml.{key}_token_id") for end, key in _TOKENS.items()}
        tokens = {name: None if found is None else int(found.contents()) for name, found in ids.items()}
        sizes = {tensor.name: int(tensor.n_elements) for tensor in reader.tensors}
        tensors = {tensor.name: tensor for tensor in reader.tensors if tensor.name in _FACTORS}
        factors = {key: dequantize(t.data, t.tensor_type).astype(np.float64).ravel() for key, t in tensors.items()}
        words = (reader.fields.get(f"tokenizer.ggml.{key}") for key in ("model", "pre"))
        kind, split = ("" if word is None else str(word.contents()) for word in words)
        return cls(name, said, tokens, sizes, factors, split if kind == "gpt2" else None)

    def refuse(self, key: str, why: str) -> CheckpointError:
        """Return the error that the config cannot hold what a key says."""
        return CheckpointError(
            f"the GGUF file says {self.architecture}.{key} = {self.said[key]!r}, and {why}: the converted model would "
            "compute something else. Use the safetensors original of this model."
        )


def complete(config: Any, facts: Facts) -> list[str]:
    """Put into a config what Transformers leaves out of a file's metadata; return the keys that mean nothing to us.

    Raises:
        CheckpointError: the config has no field for what a key says; it is named.
    """
    read = _read_by_transformers(config, facts)
    unknown: list[str] = []
    for key, value in facts.said.items():
        field = next((name for name in _FIELDS.get(key, "").split("|") if name and hasattr(config, name)), None)
        if value in _NEUTRAL.get(key, ()):
            if field and key in _IDLE:
                setattr(config, field, _IDLE[key])
        elif field and key not in read:
            setattr(config, field, value)
        elif key in read or key in _READ:
            continue
        elif key in _NEUTRAL:
            raise facts.refuse(key, f"{type(config).__name__} has no field for it")
        else:
            unknown.append(f"{facts.architecture}.{key}")
    if facts.architecture in _QUERY_SCALARS:
        shared = config.hidden_size // config.num_attention_heads
        largest = facts.said.get("block_count") == _QUERY_SCALARS[facts.architecture]
        config.query_pre_attn_scalar = shared if largest else config.head_dim
    for name, token in facts.tokens.items():
        if token is not None or name == "pad_token_id":  # whose default is a token of another vocabulary
            setattr(config, name, token)
    _turn(config, facts)
    return sorted(unknown)


def _read_by_transformers(config: Any, facts: Facts) -> set[str]:
    """Return the keys that Transformers itself has put into the config."""
    reader = GGUF_CONFIG_ARCHS.get(facts.architecture)
    if reader is not None:  # a function, which tells by what it looks up
        looked_up = _LookedUp(facts)
        reader(looked_up, ())
        return looked_up.keys_read
    kind = config.model_type.removesuffix("_text")
    mapping: Any = GGUF_CONFIG_MAPPING.get(kind, GGUF_CONFIG_MAPPING.get(facts.architecture, {}))
    return {key for key, field in mapping.items() if field is not None}


class _LookedUp(dict[str, Any]):
    """A file's metadata that remembers which keys of its architecture were looked up."""

    def __init__(self, facts: Facts) -> None:
        self._prefix = f"{facts.architecture}."
        super().__init__({self._prefix + key: value for key, value in facts.said.items()})
        self.keys_read: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        return self.get(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.keys_read.add(key.removeprefix(self._prefix))
        return super().get(key, default)


def _turn(config: Any, facts: Facts) -> None:
    """Say how positions are turned: base, width, and how they are stretched."""
    parameters = getattr(config, "rope_parameters", None)
    if not isinstance(parameters, dict):
        if facts.factors or "rope.scaling.type" in facts.said:
            raise CheckpointError(f"the GGUF file scales rotary positions, and {type(config).__name__} has none")
        return
    own = parameters.get("full_attention", parameters)
    if "rope.freq_base" in facts.said:
        own["rope_theta"] = float(facts.said["rope.freq_base"])
    if "rope.freq_base_swa" in facts.said and "sliding_attention" in parameters:
        parameters["sliding_attention"]["rope_theta"] = float(facts.said["rope.freq_base_swa"])
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    turned = facts.said.get("rope.dimension_count", head)
    if own is parameters and turned != int(head * own.get("partial_rotary_factor", 1.0)):
        own["partial_rotary_factor"] = turned / head
    own |= _stretch(config, facts, own, turned)
    if "original_max_position_embeddings" in own and hasattr(config, "original_max_position_embeddings"):
        config.original_max_position_embeddings = own["original_max_position_embeddings"]
    config.standardize_rope_params()


def _stretch(config: Any, facts: Facts, own: Mapping[str, Any], turned: int) -> dict[str, Any]:
    said = {key.rpartition(".")[2]: value for key, value in facts.said.items() if key.startswith("rope.scal")}
    kind, factor = said.get("type", "linear"), float(said.get("factor", said.get("scale_linear", 1.0)))
    first = int(said.get("original_context_length") or config.max_position_embeddings)
    attention = float(said.get("attn_factor", 1.0)) * float(said.get("yarn_attn_factor", 1.0))
    if facts.factors:
        if kind == "yarn" or (kind == "linear" and factor != 1.0):
            raise facts.refuse("rope.scaling.type", "it has tensors of rotary factors as well")
        return _divided(config, facts, own, turned, first, attention)
    if kind == "none" or (kind == "linear" and factor == 1.0):
        return {}
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind != "yarn":
        raise facts.refuse("rope.scaling.type", "the factors that it needs are not in the file")
    if said.get("yarn_ext_factor", 1.0) not in (1.0, -1.0):
        raise facts.refuse("rope.scaling.yarn_ext_factor", "Transformers mixes the two frequencies in full")
    made = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": first}
    betas = {end: float(said[f"yarn_{end}"]) for end in ("beta_fast", "beta_slow") if f"yarn_{end}" in said}
    return made | betas | {"attention_factor": attention * (1.0 + 0.1 * math.log(factor))}


def _divided(
    config: Any, facts: Facts, own: Mapping[str, Any], turned: int, first: int, attention: float
) -> dict[str, Any]:
    """Say that frequencies are divided by factors: Llama 3's rule where they follow it, else one by one."""
    short = facts.factors.get("rope_factors_short.weight", facts.factors.get("rope_freqs.weight"))
    long = facts.factors.get("rope_factors_long.weight", short)
    if short is None or long is None or len(short) != turned // 2 or len(long) != len(short):
        raise CheckpointError(
            f"the GGUF file has {', '.join(sorted(facts.factors))} that do not fit {turned // 2} rotary frequencies"
        )
    frequencies = float(own["rope_theta"]) ** (-np.arange(0, turned, 2) / turned)
    if "rope_freqs.weight" in facts.factors:
        for start in (8192, first):
            rule = {"factor": float(short.max()), "low_freq_factor": 1.0, "high_freq_factor": 4.0}
            if np.allclose(_llama3(frequencies, start, **rule), short, rtol=1e-5):
                return {"rope_type": "llama3", "original_max_position_embeddings": start, **rule}
    return {
        "rope_type": "longrope",
        "short_factor": short.tolist(),
        "long_factor": long.tolist(),
        "original_max_position_embeddings": first,
        "attention_factor": attention,
    }


def _llama3(
    frequencies: np.ndarray, start: int, factor: float, low_freq_factor: float, high_freq_factor: float
) -> np.ndarray:
    """Return what Llama 3.1 divides frequencies by: fast ones by 1, slow ones by ``factor``."""
    turns = start * frequencies / (2 * math.pi)
    share = np.clip((turns - low_freq_factor) / (high_freq_factor - low_freq_factor), 0.0, 1.0)
    return 1.0 / ((1.0 - share) / factor + share)


def cut(tokenizer: Any, split: str | None) -> list[str]:
    """Let a tokenizer cut and merge texts as the file says; return the key where the file does not say how.

    Raises:
        CheckpointError: nobody here knows the way that the file names.
    """
    if split in _WHOLE:
        tokenizer.backend_tokenizer.model.ignore_merges = True
    elif split in _BY_DIGITS:
        tokenizer.backend_tokenizer.pre_tokenizer = Sequence([Digits(True), ByteLevel(add_prefix_space=False)])
    elif split in ("", "default"):
        return ["tokenizer.ggml.pre"]
    elif split is not None and split not in _AS_GPT2 | GGUF_PRE_TOKENIZER_SPLITS.keys():
        raise CheckpointError(
            f"the GGUF file says tokenizer.ggml.pre = {split!r}, and this version of Transformers does not know how "
            "that cuts a text: the converted model would read other tokens. Use the safetensors original of this model"
        )
    return []


def check_placed(model: Any, facts: Facts, info: Mapping[str, Any]) -> None:
    """Refuse a conversion that left weights of the model empty, or weights of the file out.

    Raises:
        CheckpointError: it did; a few are named.
    """
    lost = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
    if lost:
        raise CheckpointError(f"the file has nothing that fits {len(lost)} weights of the model, first {lost[0]}")
    tied = {"output.weight"} if model.config.get_text_config().tie_word_embeddings else set()
    blocks = tuple(f"blk.{index}." for index in range(model.config.get_text_config().num_hidden_layers))
    beyond = {name for name in facts.sizes if name.startswith("blk.") and not name.startswith(blocks)}
    outside = {*_FACTORS, *tied, *beyond}  # blocks after the last predict further tokens, which no one asks for
    given = sum(size for name, size in facts.sizes.items() if name not in outside)
    taken = sum(tensor.numel() for tensor in {id(t): t for t in model.state_dict(keep_vars=True).values()}.values())
    if given > taken:
        kinds = sorted({name.split(".", 2)[-1] if name.startswith("blk.") else name for name in facts.sizes})
        raise CheckpointError(
            f"{given - taken:,} of the file's {given:,} numbers have no place in {type(model).__name__}, which is what "
            f"Transformers makes of it; the file's tensors are {', '.join(kinds)}"
        )

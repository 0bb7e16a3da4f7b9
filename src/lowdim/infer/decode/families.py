"""Which architectures the native engine runs, and where each keeps what the engine wants.

The engine computes one form of decoder: RMSNorm, rotary attention, a gated MLP (``csrc/decode.h``). A `Family` says
how an architecture differs from the plainest one; whatever is in a config or a model that the engine does not compute
makes `read` refuse it, in one line.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lowdim.infer.sparse.linear import SparseLinear
from lowdim.infer.sparse.matrix import Matrix, multiplies_bf16
from lowdim.nn.residual.config import placement_of

ACTIVATIONS = {"silu": 0, "swish": 0, "gelu_pytorch_tanh": 1, "gelu_new": 1, "gelu": 2}
ROTATIONS = ("default", "linear", "llama3", "yarn")  # those whose angles do not depend on the text's length
FLOATS = (torch.float32, torch.bfloat16)


class Unsupported(Exception):
    """The native engine cannot run a model; the message says why in one line."""


@dataclass(frozen=True)
class Family:
    """How an architecture differs from Llama.

    Attributes:
        name: of its classes, as in ``LlamaForCausalLM``.
        norm_offset: what is added to the weight of every norm.
        qk_norm: whether queries and keys are normed.
        window: where a layer's sliding window is found: "none", "config" (one for all) or "layer".
        nope: whether a layer may leave positions out.
        multipliers: whether the config scales embedding, residuals and logits.
    """

    name: str
    norm_offset: float = 0.0
    qk_norm: bool = False
    window: str = "none"
    nope: bool = False
    multipliers: bool = False


FAMILIES = {
    "llama": Family("Llama"),
    "mistral": Family("Mistral", window="config"),
    "qwen2": Family("Qwen2", window="layer"),
    "qwen3": Family("Qwen3", window="layer", qk_norm=True),
    "gemma": Family("Gemma", norm_offset=1.0),
    "smollm3": Family("SmolLM3", window="layer", nope=True),
    "granite": Family("Granite", multipliers=True),
}


@dataclass(frozen=True)
class Projection:
    """One product: ``many`` for many tokens, the matrix for few."""

    many: Callable[[Tensor], Tensor]
    matrix: Matrix


@dataclass(frozen=True)
class DecoderBlock:
    """One decoder block; norms are fp32, offsets added. ``window`` 0 means all keys."""

    q: Projection
    k: Projection
    v: Projection
    o: Projection
    gate: Projection
    up: Projection
    down: Projection
    attention_norm: Tensor
    mlp_norm: Tensor
    q_norm: Tensor | None
    k_norm: Tensor | None
    rotary: bool
    window: int


@dataclass(frozen=True)
class Decoder:
    """All that the engine needs of a model.

    Attributes:
        rotary: the model's own module; called with fp32 and positions it returns cosines and sines.
        norm: of the last hidden state; what divides the logits is in it.
    """

    blocks: tuple[DecoderBlock, ...]
    embedding: Tensor
    norm: Tensor
    head: Projection
    rotary: nn.Module
    heads: int
    kv_heads: int
    head_dim: int
    activation: int
    norm_eps: float
    embedding_scale: float
    attention_scale: float
    residual_scale: float

    @property
    def hidden(self) -> int:
        """Width of the residual stream."""
        return int(self.embedding.shape[1])

    @property
    def cache_dtype(self) -> torch.dtype:
        """Of keys and values, unless they are to be kept in another: fp32 where all weights are, else bf16."""
        kinds = {getattr(block, name).matrix.kind for block in self.blocks for name in PRODUCTS}
        return torch.float32 if kinds <= {"fp32"} and self.embedding.dtype == torch.float32 else torch.bfloat16


PRODUCTS = ("q", "k", "v", "o", "gate", "up", "down")


def read(model: Any) -> Decoder:
    """Return what the engine needs to run a model.

    Args:
        model: a causal LM of Transformers, dense or with `SparseLinear` layers.

    Raises:
        Unsupported: the engine does not compute what this model does.
    """
    config = model.config
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise Unsupported(f"architecture {config.model_type!r} has no native decode step")
    if (placement := placement_of(config)) is not None:
        raise Unsupported(f"blocks with the placement {placement} have no native decode step")
    _check(model, config, family)
    inner = model.model
    blocks = tuple(_block(layer, config, family, f"layers.{i}") for i, layer in enumerate(inner.layers))
    logits_scale = float(config.logits_scaling) if family.multipliers else 1.0
    first = inner.layers[0].self_attn
    return Decoder(
        blocks=blocks,
        embedding=_embedding(inner.embed_tokens),
        norm=_norm(inner.norm, config, family, "norm") / logits_scale,
        head=_projection(model.lm_head, "lm_head"),
        rotary=inner.rotary_emb,
        heads=int(config.num_attention_heads),
        kv_heads=int(config.num_key_value_heads),
        head_dim=int(first.head_dim),
        activation=ACTIVATIONS[config.hidden_act],
        norm_eps=float(config.rms_norm_eps),
        embedding_scale=_embedding_scale(inner, family),
        attention_scale=float(first.scaling),
        residual_scale=float(config.residual_multiplier) if family.multipliers else 1.0,
    )


def _check(model: Any, config: Any, family: Family) -> None:
    kind = type(model)
    if not kind.__module__.startswith("transformers.models.") or kind.__name__ != f"{family.name}ForCausalLM":
        raise Unsupported(f"{kind.__name__} is not Transformers' own {family.name}ForCausalLM")
    if config.hidden_act not in ACTIVATIONS:
        raise Unsupported(f"activation {config.hidden_act!r} has no native kernel")
    rotation = getattr(model.model.rotary_emb, "rope_type", None)
    if rotation not in ROTATIONS:
        raise Unsupported(f"rotary embedding {rotation!r} depends on the length of the text")
    if not len(model.model.layers):
        raise Unsupported("the model has no layers")
    if getattr(config, "pretraining_tp", 1) not in (None, 1):
        raise Unsupported(f"pretraining_tp={config.pretraining_tp} splits the products")
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if getattr(config, name, None):
            raise Unsupported(f"{name} has no native kernel")
    for name, module in model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            raise Unsupported(f"{name or 'the model'} has forward hooks, which only its own forward runs")


def _block(layer: Any, config: Any, family: Family, name: str) -> DecoderBlock:
    attention, mlp = layer.self_attn, layer.mlp
    parts = {
        **{part: (attention, f"{name}.self_attn.{part}_proj") for part in ("q", "k", "v", "o")},
        **{part: (mlp, f"{name}.mlp.{part}_proj") for part in ("gate", "up", "down")},
    }
    found = {part: _projection(getattr(owner, f"{part}_proj"), path) for part, (owner, path) in parts.items()}
    names = ("q_norm", "k_norm") if family.qk_norm else ()
    norms = [_norm(getattr(attention, which), config, family, which) for which in names]
    return DecoderBlock(
        **found,
        attention_norm=_norm(layer.input_layernorm, config, family, f"{name}.input_layernorm"),
        mlp_norm=_norm(layer.post_attention_layernorm, config, family, f"{name}.post_attention_layernorm"),
        q_norm=norms[0] if norms else None,
        k_norm=norms[1] if norms else None,
        rotary=bool(attention.use_rope) if family.nope else True,
        window=_window(attention, config, family),
    )


def _window(attention: Any, config: Any, family: Family) -> int:
    owner = {"none": None, "config": config, "layer": attention}[family.window]
    return int(getattr(owner, "sliding_window", None) or 0)


def _norm(module: Any, config: Any, family: Family, name: str) -> Tensor:
    if not type(module).__name__.endswith("RMSNorm"):
        raise Unsupported(f"{name} is a {type(module).__name__}, not an RMSNorm")
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if eps != config.rms_norm_eps:
        raise Unsupported(f"{name} has its own epsilon")
    weight: Tensor = _on_cpu(module.weight, name).detach().float() + family.norm_offset
    return weight.contiguous()


def _projection(module: Any, name: str) -> Projection:
    if isinstance(module, SparseLinear):
        return Projection(module, module.matrix)
    if type(module) is not nn.Linear:
        raise Unsupported(f"{name} is a {type(module).__name__}, not a Linear")
    weight = _on_cpu(module.weight, name)
    if weight.dtype not in FLOATS:
        raise Unsupported(f"{name} is stored as {str(weight.dtype).removeprefix('torch.')}")
    bias = None if module.bias is None else module.bias.detach().float()
    matrix = Matrix.from_dense(weight, weight.dtype, bias=bias, packed=False)
    emulated = weight.dtype == torch.bfloat16 and not multiplies_bf16()  # by torch; the matrix multiplies in fp32 then
    return Projection(matrix.linear if emulated else module, matrix)


def _embedding(module: Any) -> Tensor:
    weight = _on_cpu(module.weight, "embed_tokens").detach()
    if weight.dtype not in FLOATS:
        raise Unsupported(f"the embedding is stored as {str(weight.dtype).removeprefix('torch.')}")
    return weight.contiguous()


def _embedding_scale(inner: Any, family: Family) -> float:
    if family.multipliers:
        return float(inner.embedding_multiplier)
    scale = getattr(inner.embed_tokens, "embed_scale", None)
    return 1.0 if scale is None else float(scale.to(inner.embed_tokens.weight.dtype))


def _on_cpu(tensor: Tensor, name: str) -> Tensor:
    if tensor.device.type != "cpu":
        raise Unsupported(f"{name} is on {tensor.device}, and the native engine runs on the CPU")
    return tensor

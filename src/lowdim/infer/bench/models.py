"""The contestants of a whole-model measurement: one model in every form, as small in memory as honesty allows."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lowdim.core.machine import free_memory
from lowdim.core.random import generator
from lowdim.infer.bench.errors import BenchError
from lowdim.infer.bench.layers import GROUP, TORCH, Product, drop
from lowdim.infer.bench.result import BASELINE, Contestant
from lowdim.infer.bench.settings import BITS, Settings
from lowdim.infer.bench.shapes import SHAPES, Shape
from lowdim.infer.bench.timing import STREAMED
from lowdim.infer.sparse import load as runtime
from lowdim.infer.sparse.accelerate import accelerate
from lowdim.infer.sparse.linear import SparseLinear
from lowdim.infer.sparse.matrix import multiplies_bf16
from lowdim.infer.sparse.storage import PACKABLE
from lowdim.models.disk.checkpoint import Checkpoint
from lowdim.models.disk.source import resolve
from lowdim.models.load import load
from lowdim.nn.lowrank import LowRankLinear


@dataclass(frozen=True)
class Base:
    """The dense model that every contestant is made from.

    Attributes:
        model: a Transformers model in ordinary memory; of a named shape its first block alone.
        shape: the named shape, None for a real model.
        distinct: blocks of distinct weights in memory, through which a named shape's layers cycle.
        zeros: share of zeros that the linear layers of the blocks have come with.
        path: directory of a real model.
        original: directory of the model before it was pruned, which then stands for it wherever zeros are not skipped.
        trusted: whether Python code that the model brings along may be run.
        rounded: dtype that a real model is stored in, every weight with a code; none of its zeros are skipped.
        coded: dtype that its pruned weights are stored in, as codes.
    """

    model: PreTrainedModel
    shape: Shape | None
    distinct: int
    zeros: float
    path: Path | None = None
    original: Path | None = None
    trusted: bool = False
    rounded: str | None = None
    coded: str | None = None

    @property
    def sparse(self) -> bool:
        """Whether the model was pruned before."""
        return self.zeros > 0.01


def random_base(settings: Settings) -> Base:
    """Return one random block of a named shape, with embedding and head.

    Raises:
        BenchError: the contestants do not fit into the free memory.
    """
    assert settings.shape is not None
    shape = SHAPES[settings.shape]
    distinct = distinct_blocks(shape, settings, free_memory())
    check_memory(needed(shape, settings, distinct), f"--shape {settings.shape}")
    with torch.device("meta"):
        model: Any = LlamaForCausalLM(shape.config(layers=1))
    model = model.to(torch.bfloat16).to_empty(device="cpu")
    model.tie_weights()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(_random(parameter.shape, name) if parameter.ndim > 1 else torch.ones(()))
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    return Base(model.eval(), shape, distinct, 0.0)


def _random(shape: torch.Size, name: str) -> Tensor:
    scale = 1 / math.sqrt(shape[-1])
    return torch.randn(shape, generator=generator(0, "bench", name)).mul_(scale)


def loaded_base(settings: Settings) -> Base:
    """Return a real model.

    Raises:
        LowdimError: the model cannot be loaded, or its contestants do not fit into the free memory.
    """
    assert settings.model is not None
    trusted = settings.trust_remote_code
    source = resolve(settings.model, revision=settings.revision, trust_remote_code=trusted)
    checkpoint = Checkpoint(source.path)
    weights = sum(checkpoint.info(name).numel for name in checkpoint.names())
    check_memory(sum(bytes_of(who, weights) for who in wanted(settings)) + 4 * weights, settings.model)
    model = load(source.path, trust_remote_code=trusted, factors=True)
    rounded, coded = (coded_as(checkpoint, masked) for masked in (False, True))
    pruned = [weight for _, weight, is_head in linears(model) if not is_head and rounded is None]
    total = sum(weight.numel() for weight in pruned)
    zeros = 1 - sum(int(torch.count_nonzero(weight)) for weight in pruned) / total if total else 0.0
    layers = model.config.get_text_config(decoder=True).num_hidden_layers
    return Base(model, None, layers, round(zeros, 4), source.path, trusted=trusted, rounded=rounded, coded=coded)


def coded_as(checkpoint: Checkpoint, *masked: bool) -> str | None:
    """Return what weights of a checkpoint were rounded to, with a mask or without; None if they were not."""
    forms = [checkpoint.form(name) for name in checkpoint.names()]
    return next((f.grid.name for f in forms if f is not None and f.grid is not None and f.masked in masked), None)


def wanted(settings: Settings, zeros: float = 0.0) -> list[Contestant]:
    """Return who is to be measured: torch, and each dtype dense and, where it can skip zeros, sparse.

    Example:
        >>> [str(c) for c in wanted(Settings(shape="llama-7b", sparsities=(0.7,), dtypes=("int8",)))]
        ['torch bf16 dense', 'lowdim int8 dense', 'lowdim int8 70%']
    """
    found = [Contestant("torch", "bf16")]
    found += [Contestant("torch", "fp32")] if "fp32" in settings.dtypes else []
    skipping = set(PACKABLE) & set(settings.dtypes if settings.sparse_dtypes is None else settings.sparse_dtypes)
    for dtype in settings.dtypes:
        shares = [zeros] if zeros else sorted(set(settings.sparsities))
        found += [Contestant("lowdim", dtype, share) for share in (0.0, *(shares if dtype in skipping else ()))]
    return found


def emulated(who: Contestant) -> bool:
    """Return whether torch multiplies a contestant's matrices more slowly than in fp32, as nobody would let it."""
    return who == BASELINE and not multiplies_bf16()


def bytes_of(who: Contestant, weights: int) -> int:
    """Return about how many bytes some weights take in a contestant's form.

    Example:
        >>> bytes_of(Contestant("lowdim", "bf16", 0.5), 8)
        9
    """
    bits = BITS[who.dtype]
    return round(weights * (1 + bits * (1 - who.sparsity) if who.sparsity else bits) / 8)


def needed(shape: Shape, settings: Settings, distinct: int) -> int:
    """Return about how many bytes all contestants of a shape take, with so many distinct blocks each."""
    stored = sum(bytes_of(who, distinct * shape.block) + bytes_of(who.dense, shape.outer) for who in wanted(settings))
    return stored + 4 * (shape.block + shape.outer)


def distinct_blocks(shape: Shape, settings: Settings, free: int | None) -> int:
    """Return how many blocks are distinct: all if half of the memory holds them, else as few as still stream from it.

    Example:
        >>> settings = Settings(shape="llama-7b", sparsities=(0.7,))
        >>> [distinct_blocks(SHAPES["llama-7b"], settings, gigabytes * 10**9) for gigabytes in (24, 128)]
        [2, 32]
    """
    if free is not None and needed(shape, settings, shape.layers) < free / 2:
        return shape.layers
    smallest = min(bytes_of(who, shape.block) for who in wanted(settings))
    return min(shape.layers, max(2, math.ceil(STREAMED / smallest)))


def check_memory(size: int, what: str) -> None:
    """Refuse what would not fit."""
    free = free_memory()
    if free is not None and size > free:
        raise BenchError(
            f"measuring {what} needs about {size / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB is free: all "
            "contestants are held at once, to be measured in turn. Ask for fewer --dtype and --sparsity at a time."
        )


def build(base: Base, who: Contestant) -> PreTrainedModel:
    """Return the model in a contestant's form, at its full depth."""
    if (who.sparsity and base.sparse) or (who.engine == "lowdim" and who.dtype == base.rounded):
        return _as_stored(base, who.dtype)
    model: Any = load(base.original, trust_remote_code=base.trusted) if base.original else copy.deepcopy(base.model)
    if who.engine == "torch":
        model = model.to(TORCH[who.dtype])
    else:
        if who.sparsity:
            _drop_all(model, who.sparsity)
        accelerate(model, dtype=who.dtype, group=GROUP, min_sparsity=None if who.sparsity else 1.0)
    result: PreTrainedModel = model if base.shape is None else _deepened(model, base.shape, base.distinct)
    return result


def _as_stored(base: Base, dtype: str) -> PreTrainedModel:
    """Return a model as its users get it: packed weights as they are, others packed where that pays."""
    assert base.path is not None
    model = runtime.load(base.path, dtype, group=GROUP, trust_remote_code=base.trusted)
    if not any(isinstance(module, SparseLinear) for module in model.modules()):
        accelerate(model, dtype=dtype, group=GROUP)
    return model


def _drop_all(model: PreTrainedModel, sparsity: float) -> None:
    for seed, (_, weight, is_head) in enumerate(linears(model)):
        if not is_head:
            weight.copy_(drop(weight, sparsity, seed))


def linears(model: PreTrainedModel) -> Iterator[tuple[str, Tensor, bool]]:
    """Yield the name of every linear layer, its weight as ``[out, in]``, and whether it makes the logits.

    A layer of two factors is two.
    """
    head = model.get_output_embeddings()
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear | Conv1D):
            weight = layer.weight.detach()
            yield name, weight.t() if isinstance(layer, Conv1D) else weight, layer is head
        elif isinstance(layer, LowRankLinear):
            yield from ((f"{name}/{part}", getattr(layer, part).detach(), False) for part in ("b", "a"))


def _deepened(model: PreTrainedModel, shape: Shape, distinct: int) -> PreTrainedModel:
    """Return a model of full depth whose blocks cycle through some copies of another's only block."""
    with torch.device("meta"):
        deep: Any = LlamaForCausalLM(shape.config())
    inner: Any = model.model
    blocks = [inner.layers[0], *(copy.deepcopy(inner.layers[0]) for _ in range(distinct - 1))]
    for name in ("embed_tokens", "norm", "rotary_emb"):
        setattr(deep.model, name, getattr(inner, name))
    deep.lm_head = model.lm_head
    for index, layer in enumerate(deep.model.layers):
        block = blocks[index % distinct]
        layer.mlp, layer.input_layernorm = block.mlp, block.input_layernorm
        layer.post_attention_layernorm = block.post_attention_layernorm
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(layer.self_attn, name, getattr(block.self_attn, name))
    deep.config.dtype = model.config.dtype
    result: PreTrainedModel = deep.eval()
    return result


def products(base: Base) -> list[Product]:
    """Return the model's linear layers by shape, each with one of them: of a real model, from the middle."""
    groups: dict[tuple[bool, int, int], list[tuple[str, Tensor]]] = {}
    for name, weight, is_head in linears(base.model):
        members = groups.setdefault((not is_head, *weight.shape), [])
        members.append((name.rpartition(".")[2], weight))
    depth = base.shape.layers if base.shape else 1
    return [
        Product(
            names=tuple(dict.fromkeys(kind for kind, _ in members)),
            count=len(members) * (depth if prunable else 1),
            weight=members[len(members) // 2][1],
            prunable=prunable,
            coded=base.coded,
        )
        for (prunable, *_), members in groups.items()
    ]


def kernels(model: PreTrainedModel) -> dict[str, int]:
    """Return how many linear layers each kernel multiplies with."""
    return dict(Counter(name for name, _ in _uses(model)))


def bytes_per_token(model: PreTrainedModel) -> int:
    """Return the bytes of weights that one decoding step reads: every linear layer once, every expert too."""
    return sum(size for _, size in _uses(model))


def _uses(model: PreTrainedModel) -> Iterator[tuple[str, int]]:
    """Yield the kernel and the bytes of every use of a linear layer."""
    for _, layer in model.named_modules(remove_duplicate=False):
        if isinstance(layer, SparseLinear):
            yield layer.matrix.kernel, layer.matrix.nbytes
        elif isinstance(layer, nn.Linear | Conv1D):
            yield "torch", layer.weight.nbytes
        elif isinstance(layer, LowRankLinear):
            yield "torch", layer.a.nbytes + layer.b.nbytes

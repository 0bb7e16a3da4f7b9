"""Many tokens of one sequence at once, in torch: what the decode engine does for one, with the same cache."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from lowdim.infer.decode.engine import NativeEngine
from lowdim.infer.decode.families import Decoder
from lowdim.infer.sparse.matrix import multiplies_bf16
from lowdim.models.walk.attention import chunked_causal

_ACT: dict[int, Callable[[Tensor], Tensor]] = {
    0: functional.silu,
    1: lambda x: functional.gelu(x, approximate="tanh"),
    2: functional.gelu,
}


class Angles:
    """Cosines and sines of every position, computed by the model's own module when they are first needed.

    Attributes:
        half: angles per position.
        cos: fp32 ``[positions, half]``; sin likewise.
    """

    _STRETCH = 1024

    def __init__(self, plan: Decoder, positions: int) -> None:
        self._rotary = plan.rotary
        self.half = self._compute(0, 1)[0].shape[1]
        # numpy's zeros take no memory until they are written
        self.cos, self.sin = (torch.from_numpy(np.zeros((positions, self.half), dtype=np.float32)) for _ in range(2))
        self._ready = 0

    def reach(self, end: int) -> None:
        """Make sure that positions before ``end`` are there."""
        if end <= self._ready:
            return
        begin, self._ready = self._ready, min(-(-end // self._STRETCH) * self._STRETCH, len(self.cos))
        self.cos[begin : self._ready], self.sin[begin : self._ready] = self._compute(begin, self._ready)

    def _compute(self, begin: int, end: int) -> tuple[Tensor, Tensor]:
        with torch.inference_mode():
            cos, sin = self._rotary(torch.zeros(1), torch.arange(begin, end)[None])
        half = cos.shape[-1] // 2  # the other half repeats it
        return cos[0, :, :half], sin[0, :, :half]


class SlotCache:
    """A sequence's keys and values in an engine, and the dtype in which many tokens attend to them."""

    def __init__(self, engine: NativeEngine, slot: int, dtype: torch.dtype) -> None:
        self._engine, self._slot, self._dtype = engine, slot, dtype

    def extend(self, layer: int, at: int, k: Tensor, v: Tensor, begin: int) -> Tensor:
        """Append at ``at``; return ``[2, kv_heads, tokens, head_dim]`` from ``begin`` on, as the cache holds them."""
        self._engine.write(self._slot, layer, at, k, v)
        return self._engine.read(self._slot, layer, begin, at + k.shape[1]).to(self._dtype)


def prefill(plan: Decoder, angles: Angles, cache: SlotCache, ids: Tensor, at: int) -> Tensor:
    """Append tokens to a sequence; return the last one's hidden state, normed, fp32 ``[hidden]``.

    Args:
        plan: the model.
        angles: of every position up to the last token's.
        cache: keys and values of the sequence.
        ids: int64 ``[tokens]``.
        at: tokens that the sequence holds already.
    """
    x = functional.embedding(ids, plan.embedding)
    if plan.embedding_scale != 1:
        x = x * plan.embedding_scale
    cos, sin = (table[at : at + len(ids)].to(x.dtype) for table in (angles.cos, angles.sin))
    for layer, block in enumerate(plan.blocks):
        mixed = _attention(plan, layer, _norm(x, block.attention_norm, plan), (cos, sin), cache, at)
        x = _add(x, mixed, plan)
        h = _norm(x, block.mlp_norm, plan)
        gated = _ACT[plan.activation](block.gate.many(h)) * block.up.many(h)
        x = _add(x, block.down.many(gated), plan)
    return _norm(x[-1].float(), plan.norm, plan)


def _add(x: Tensor, y: Tensor, plan: Decoder) -> Tensor:
    return x + y if plan.residual_scale == 1 else x + y * plan.residual_scale


def _norm(x: Tensor, weight: Tensor, plan: Decoder) -> Tensor:
    return functional.rms_norm(x.float(), weight.shape, weight, plan.norm_eps).to(x.dtype)


def _attention(
    plan: Decoder, layer: int, h: Tensor, angles: tuple[Tensor, Tensor], cache: SlotCache, at: int
) -> Tensor:
    block, count, size = plan.blocks[layer], len(h), plan.head_dim
    q, k, v = (projection.many(h).view(count, -1, size).transpose(0, 1) for projection in (block.q, block.k, block.v))
    q = q if block.q_norm is None else _norm(q, block.q_norm, plan)
    k = k if block.k_norm is None else _norm(k, block.k_norm, plan)
    if block.rotary:
        q, k = _rotated(q, *angles), _rotated(k, *angles)
    begin = max(0, at + 1 - block.window) if block.window else 0
    seen = cache.extend(layer, at, k, v, begin)
    biased = block.k.matrix.bias is not None
    mixed = _attend(plan, q.to(seen.dtype), seen, block.window, at - begin, exact=biased)
    result: Tensor = block.o.many(mixed.transpose(0, 1).reshape(count, -1).to(h.dtype))
    return result


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = cos.shape[-1]
    a, b = x[..., :half], x[..., half : 2 * half]
    return torch.cat((a * cos - b * sin, b * cos + a * sin, x[..., 2 * half :]), -1)


def _attend(plan: Decoder, q: Tensor, cache: Tensor, window: int, before: int, exact: bool) -> Tensor:
    """Attend from ``q`` [heads, tokens, size] to keys and values [2, kv_heads, before + tokens, size].

    Scores are kept in fp32 if that is to be ``exact``, which those of keys with biases need: they are large.
    """
    if not exact and q.dtype == torch.bfloat16 and multiplies_bf16():
        k, v = cache[:, None]
        return chunked_causal(q[None], k, v, plan.attention_scale, window)[0].transpose(0, 1)
    count, total = q.shape[1], cache.shape[2]
    causal, mask = before == 0 and not (window and window < count), None
    if not causal:
        distance = torch.arange(before, total)[:, None] - torch.arange(total)
        mask = (distance >= 0) & (distance < (window or total))
    k, v = (part.repeat_interleave(plan.heads // plan.kv_heads, 0)[None] for part in cache)
    return functional.scaled_dot_product_attention(
        q[None], k, v, attn_mask=mask, is_causal=causal, scale=plan.attention_scale
    )[0]

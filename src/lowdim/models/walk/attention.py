"""Causal attention for bf16 prefill on a CPU, from batched matrix products.

PyTorch's fused CPU kernel runs a 512-token causal prefill of bf16 at about 60 GFLOP/s on the machine this was measured
on; chunks of queries against the keys they can see, as bf16 matrix products, take 0.4 of its time. Scores are bf16
then, which costs no more than bf16 does elsewhere while they are small; biases of the keys make all scores of a query
large. Whatever has a mask, a bias or another dtype goes to the stock implementation, and so does everything where torch
does not multiply bf16 natively: there products in bf16 take twenty times as long as that kernel (a Zen 3).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

CHUNK, _SCORES = 128, 1 << 26
"""Queries of a head at a time, unless their scores with all keys are more than so many numbers."""


def chunked_causal(query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int = 0) -> Tensor:
    """Return ``softmax(scaling * Q K^T + causal mask) V``, one chunk of queries at a time.

    Args:
        query: ``[batch, heads, tokens, width]``, of the last tokens that there are keys of.
        key: ``[batch, kv_heads, tokens or more, width]``; ``heads`` is a multiple of ``kv_heads``.
        value: as ``key``, its width may differ.
        scaling: factor of the scores.
        window: tokens that each sees, itself among them; 0 for all before it.

    Returns:
        ``[batch, tokens, heads, width]``.

    Example:
        >>> q = torch.zeros(1, 2, 3, 4); v = torch.arange(3.0).view(1, 1, 3, 1).expand(1, 1, 3, 4)
        >>> chunked_causal(q, torch.zeros(1, 1, 3, 4), v, 1.0)[0, :, 0, 0]
        tensor([0.0000, 0.5000, 1.0000])
        >>> chunked_causal(q[:, :, 1:], torch.zeros(1, 1, 3, 4), v, 1.0, window=2)[0, :, 0, 0]
        tensor([0.5000, 1.5000])
    """
    batch, heads, tokens, width = query.shape
    groups, total = heads // key.shape[1], key.shape[2]
    before = total - tokens
    queries = (query * scaling).view(batch, key.shape[1], groups, tokens, width)
    keys = key.reshape(-1, total, width).transpose(1, 2)
    values = value.reshape(-1, total, value.shape[-1])
    chunk = max(8, min(CHUNK, _SCORES // (batch * heads * total)))
    hidden = torch.full((chunk, chunk), -math.inf, dtype=query.dtype)
    later = hidden.triu(1)
    out = query.new_empty(batch, tokens, heads, value.shape[-1])
    for start in range(0, tokens, chunk):
        end = min(start + chunk, tokens)
        size, last = end - start, before + end
        first = max(0, before + start + 1 - window) if window else 0
        scores = torch.bmm(queries[:, :, :, start:end].reshape(-1, groups * size, width), keys[:, :, first:last])
        parts = scores.view(-1, groups, size, last - first)
        parts[..., last - first - size :] += later[:size, :size]
        if window:
            earlier = hidden[:size, : last - first].tril(before + start - window - first)
            parts[..., : earlier.shape[1]] += earlier
        mixed = torch.bmm(torch.softmax(scores, -1), values[:, first:last])
        out[:, start:end] = mixed.view(batch, heads, size, -1).transpose(1, 2)
    return out


def prefill_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Attention function in the signature of Transformers' ``AttentionInterface``."""
    causal = kwargs.get("is_causal")
    plain = (
        attention_mask is None
        and (causal if causal is not None else getattr(module, "is_causal", True))
        and query.dtype == torch.bfloat16
        and query.device.type == "cpu"
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        and query.shape[2] == key.shape[2]
        and not kwargs.get("dropout")
        and kwargs.get("position_bias") is None
        and kwargs.get("softcap") is None
        and kwargs.get("cache") is None
        and all(getattr(part, "bias", None) is None for part in module.children())
    )
    if not plain:
        stock: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        return stock
    scaling = kwargs.get("scaling")
    return chunked_causal(query, key, value, query.shape[-1] ** -0.5 if scaling is None else scaling), None


@contextmanager
def adopted() -> Iterator[None]:
    """Let models that use SDPA use `prefill_attention` for the time of a ``with``, under the name that they know.

    Some models ask for the name of their attention, and with one they do not know they compute something else.
    """
    own = ALL_ATTENTION_FUNCTIONS._local_mapping
    before = own.get("sdpa")
    own["sdpa"] = prefill_attention
    try:
        yield
    finally:
        if before is None:
            del own["sdpa"]
        else:
            own["sdpa"] = before

"""Attention of many tokens at once: by the kernel of torch, and by products of matrices where bf16 is multiplied."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from lowdim.infer.decode import prefill
from lowdim.models.walk import attention


def expected(plan: Any, q: Tensor, cache: Tensor, window: int, before: int) -> Tensor:
    """Return what every query makes of what it sees, one by one, in fp64."""
    k, v = (part.double().repeat_interleave(plan.heads // plan.kv_heads, 0) for part in cache)
    result = torch.empty(q.shape, dtype=torch.float64)
    for place in range(q.shape[1]):
        last = before + place + 1
        seen = slice(max(0, last - window) if window else 0, last)
        scores = torch.einsum("hd,htd->ht", q[:, place].double(), k[:, seen]) * plan.attention_scale
        result[:, place] = torch.einsum("ht,htd->hd", scores.softmax(-1), v[:, seen])
    return result


@pytest.mark.parametrize("products", [False, True])
@pytest.mark.parametrize("window", [0, 3, 64, 1000])
@pytest.mark.parametrize(("before", "count"), [(0, 1), (0, 5), (0, 300), (7, 130), (200, 1), (200, 129)])
@pytest.mark.parametrize(("heads", "kv_heads", "some"), [(4, 4, 128), (6, 2, 128), (6, 1, 8)])
def test_every_query_attends_to_what_it_sees(
    heads: int,
    kv_heads: int,
    some: int,
    before: int,
    count: int,
    window: int,
    products: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(prefill, "multiplies_bf16", lambda: products)
    if some < attention.CHUNK:
        monkeypatch.setattr(attention, "_SCORES", heads)
    plan: Any = SimpleNamespace(heads=heads, kv_heads=kv_heads, attention_scale=0.2)
    draw = torch.Generator().manual_seed(count + before)
    q = torch.randn(heads, count, 16, generator=draw).bfloat16()
    cache = torch.randn(2, kv_heads, before + count, 16, generator=draw).bfloat16()
    found = prefill._attend(plan, q, cache, window, before, exact=False)
    assert found.dtype == torch.bfloat16
    assert torch.allclose(found.double(), expected(plan, q, cache, window, before), atol=0.03)


def test_keys_with_a_common_part_are_attended_to_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefill, "multiplies_bf16", lambda: True)
    plan: Any = SimpleNamespace(heads=4, kv_heads=2, attention_scale=0.25)
    draw = torch.Generator().manual_seed(0)
    q = (torch.randn(4, 200, 16, generator=draw) + 3).bfloat16()
    cache = (torch.randn(2, 2, 200, 16, generator=draw) + torch.tensor([20.0, 0.0])[:, None, None, None]).bfloat16()
    wanted = expected(plan, q, cache, 0, 0)
    off = [
        float((prefill._attend(plan, q, cache, 0, 0, exact).double() - wanted).norm() / wanted.norm())
        for exact in (True, False)
    ]
    assert off[0] < 0.01
    assert off[1] > 3 * off[0]

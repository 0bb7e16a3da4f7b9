from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.models.zoo import ZOO
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lowdim.data.batch import Batch
from lowdim.models.load import quiet
from lowdim.models.walk import attention
from lowdim.models.walk.attention import adopted, chunked_causal, prefill_attention
from lowdim.models.walk.opened import open_model
from lowdim.models.walk.skeleton import empty_model


def inputs(tokens: int, kv_heads: int = 2, width: int = 8, value_width: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    shapes = [(2, 4, tokens, width), (2, kv_heads, tokens, width), (2, kv_heads, tokens, value_width)]
    query, key, value = (torch.randn(shape, generator=generator) for shape in shapes)
    return query, key, value


@pytest.mark.parametrize("tokens", [1, 5, 127, 128, 129, 300])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("value_width", [8, 5])
def test_equals_the_stock_kernel(tokens: int, kv_heads: int, value_width: int) -> None:
    query, key, value = inputs(tokens, kv_heads, value_width=value_width)
    expected = scaled_dot_product_attention(query, key, value, is_causal=True, scale=0.3, enable_gqa=True)
    assert torch.allclose(chunked_causal(query, key, value, 0.3), expected.transpose(1, 2), atol=1e-5)


def test_in_bf16_it_is_as_near_to_fp32_as_the_stock_kernel() -> None:
    query, key, value = inputs(300)
    exact = chunked_causal(query, key, value, 0.3)
    short = [t.bfloat16() for t in (query, key, value)]
    stock = scaled_dot_product_attention(*short, is_causal=True, scale=0.3, enable_gqa=True).transpose(1, 2)
    made = chunked_causal(*short, 0.3)
    assert float((made - exact).abs().mean()) < 1.5 * float((stock - exact).abs().mean())


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record which implementation is used."""
    made: list[str] = []

    def ours(query: Tensor, *rest: object) -> Tensor:
        made.append("ours")
        return chunked_causal(query, *rest)  # type: ignore[arg-type]

    def stock(*args: object, **kwargs: object) -> tuple[None, None]:
        made.append("stock")
        return None, None

    monkeypatch.setattr(attention, "chunked_causal", ours)
    monkeypatch.setattr(attention, "sdpa_attention_forward", stock)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    return made


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, "ours"),
        ({"is_causal": False}, "stock"),
        ({"dropout": 0.1}, "stock"),
        ({"softcap": 30.0}, "stock"),
        ({"position_bias": torch.zeros(1)}, "stock"),
        ({"attention_mask": torch.ones(2, 1, 6, 6)}, "stock"),
        ({"dtype": torch.float32}, "stock"),
        ({"kv_tokens": 7}, "stock"),
        ({"module": nn.Sequential(nn.Linear(4, 4, bias=False))}, "ours"),
        ({"module": nn.Sequential(nn.Linear(4, 4))}, "stock"),
    ],
    ids=str,
)
def test_only_plain_causal_bf16_prefill_is_taken_over(
    change: dict[str, object], expected: str, calls: list[str]
) -> None:
    options = {"attention_mask": None, "scaling": 0.5} | change
    dtype = options.pop("dtype", torch.bfloat16)
    query, key, value = (t.to(dtype) for t in inputs(6))  # type: ignore[call-overload]
    if options.pop("kv_tokens", None):
        key, value = (torch.cat([t, t[:, :, :1]], 2) for t in (key, value))
    module: nn.Module = options.pop("module", nn.Module())  # type: ignore[assignment]
    prefill_attention(module, query, key, value, **options)  # type: ignore[arg-type]
    assert calls == [expected]


def test_where_bf16_is_not_multiplied_natively_nothing_is_taken_over(
    calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    prefill_attention(nn.Module(), *(t.bfloat16() for t in inputs(6)), attention_mask=None)
    assert calls == ["stock"]


def test_it_is_adopted_under_the_name_that_models_know_and_for_a_time() -> None:
    mapping = ALL_ATTENTION_FUNCTIONS
    stock = mapping["sdpa"]
    with adopted():
        assert mapping["sdpa"] is prefill_attention
        with pytest.raises(KeyError), adopted():
            raise KeyError
        assert mapping["sdpa"] is prefill_attention
    assert mapping["sdpa"] is stock
    assert "sdpa" not in mapping._local_mapping


def test_a_stream_from_disk_uses_it_in_its_blocks(calls: list[str], tmp_path: Path) -> None:
    with quiet():
        ZOO["llama"]().bfloat16().save_pretrained(tmp_path)
    stream = open_model(tmp_path, compute="bfloat16").stream
    assert stream.model.config._attn_implementation == "sdpa"
    [made] = stream.capture([Batch(torch.ones(1, 5, dtype=torch.int64))])
    with stream.block(0) as block, torch.no_grad():
        calls.clear()
        block.forward(made)
    assert calls == ["ours"]


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3", "gpt2", "opt", "phi", "bloom"])
def test_models_in_bf16_give_the_stock_logits(kind: str, tmp_path: Path) -> None:
    model = ZOO[kind]().bfloat16()
    with quiet():
        model.save_pretrained(tmp_path)
        other = empty_model(tmp_path, torch.bfloat16)
    other = other.to_empty(device="cpu")
    other.load_state_dict(model.state_dict())
    other.tie_weights()
    for (_, a), (_, b) in zip(model.named_buffers(), other.named_buffers(), strict=True):
        b.copy_(a)
    ids = torch.randint(1, 96, (2, 100), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(input_ids=ids).logits.float()
        with adopted():
            made = other(input_ids=ids).logits.float()
    assert float((made - expected).abs().mean()) < 0.03 * float(expected.abs().mean())

"""The cache of keys and values in numbers and in codes, against float64 at every level."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.native.matrices import Array
from tests.native.test_decode import Decoder, decoders, step

from lowdim.core.errors import LowdimError
from lowdim.core.native import Library
from lowdim.infer.decode.engine import NativeEngine

KINDS = {"fp32": 0, "bf16": 1, "int8": 2, "int4": 3}
per_level = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=15, deadline=None)


def signs(size: int) -> Array:
    """Sylvester's matrix, orthogonal."""
    found = np.ones((1, 1))
    while len(found) < size:
        found = np.block([[found, found], [found, -found]])
    return found / np.sqrt(size)


def spread(rows: Array) -> Array:
    """Rows as int4 keeps them: each stretch of the largest power of two that divides them, rotated."""
    size = rows.shape[-1] & -rows.shape[-1]
    return (rows.reshape(*rows.shape[:-1], -1, size) @ signs(size)).reshape(rows.shape)


def alike(rows: Array) -> Array:
    """The elements that have the same scale, every eighth of each 64, filled up with zeros: [..., 8, 8]."""
    size = rows.shape[-1]
    wide = np.pad(rows, [(0, 0)] * (rows.ndim - 1) + [(0, -size % 64)])
    return wide.reshape(*rows.shape[:-1], -1, 8, 8).swapaxes(-1, -2)


def assert_near(found: Array, exact: Array, kind: str) -> None:
    """As near as the kind allows: numbers and int8 to half a step, int4 no farther than by the plainest scale."""
    if kind == "int4":
        found, exact = alike(spread(found)), alike(spread(exact))
        most = np.take_along_axis(exact, np.abs(exact).argmax(-1)[..., None], -1)
        scale = np.where(most == 0, 1, most / -8)
        plain = np.clip(np.rint(exact / scale), -8, 7) * scale
        loss, allowed = (((part - exact) ** 2).sum(-1) for part in (found, plain))
        whole = np.abs(exact).max((-3, -2, -1), keepdims=True)[..., 0]
        assert (loss <= 1.05 * allowed + 2e-3 * most[..., 0] ** 2 + 1e-11 * whole**2).all()
        return
    if kind == "int8":
        step = np.abs(exact).max(-1, keepdims=True) / 127 * (1 + 2.0**-8)
    else:
        step = np.abs(exact) * {"fp32": 2.0**-22, "bf16": 2.0**-7}[kind]
    assert (np.abs(found - exact) <= 0.501 * step + 1e-5 * np.abs(exact).max(-1, keepdims=True)).all()


@pytest.mark.parametrize("kind", KINDS)
@given(decoder=decoders(), length=st.sampled_from((1, 5, 17, 140, 290)), seed=st.integers(0, 2**32))
@per_level
def test_attention_reads_what_the_cache_holds(
    library: Library, kind: str, decoder: Decoder, length: int, seed: int
) -> None:
    decoder.sizes["cache_kind"] = KINDS[kind]
    ids = np.random.default_rng(seed).integers(0, decoder.sizes["vocab"], length).tolist()
    engine, rows = NativeEngine(library, decoder.struct()), decoder.head.weight.shape[0]
    for at in range(0, length, 60):
        some = ids[at : at + 60]
        found = step(engine, [1] * len(some), some, list(range(at, at + len(some))), rows)
    caches = [engine.read(1, layer, 0, length).double().numpy() for layer in range(len(decoder.layers))]
    expected = decoder.next_logits(ids[-1], caches)
    assert np.abs(found[-1] - expected).max() <= 1e-4 * np.abs(expected).max() + 1e-5
    assert_near(caches[0], decoder.keys_and_values(ids), kind)


@pytest.mark.parametrize("kind", KINDS)
@given(decoder=decoders(), data=st.data())
@per_level
def test_rows_come_back_as_near_as_their_kind_allows(
    library: Library, kind: str, decoder: Decoder, data: st.DataObject
) -> None:
    decoder.sizes["cache_kind"] = KINDS[kind]
    engine, layer = NativeEngine(library, decoder.struct()), len(decoder.layers) - 1
    rng, at = np.random.default_rng(data.draw(st.integers(0, 2**32))), data.draw(st.integers(0, 250))
    shape = (2, decoder.sizes["kv_heads"], data.draw(st.integers(1, 50)), decoder.sizes["head_dim"])
    rows = torch.from_numpy((rng.standard_normal(shape) * 10.0 ** rng.uniform(-20, 20, (*shape[:3], 1))).astype("f"))
    rows *= torch.from_numpy(rng.random(shape) < 0.8)
    rows[:, :, 0] = 0
    engine.write(2, layer, at, *rows)
    found = engine.read(2, layer, at, at + shape[2])
    assert_near(found.double().numpy(), rows.double().numpy(), kind)
    assert not found[:, :, 0].any()
    if kind != "int4":
        assert not found[rows == 0].any()
    untouched = engine.read(2, layer, 0, at), engine.read(2, layer, at + shape[2], 300), engine.read(1, layer, 0, 300)
    assert not any(part.any() for part in untouched)
    engine.forget(2)
    assert not engine.read(2, layer, 0, 300).any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -float("inf")])
@given(decoder=decoders())
@settings(per_level, max_examples=3)
def test_a_broken_row_breaks_no_other(library: Library, kind: str, broken: float, decoder: Decoder) -> None:
    decoder.sizes["cache_kind"] = KINDS[kind]
    engine = NativeEngine(library, decoder.struct())
    k = torch.ones(decoder.sizes["kv_heads"], 3, decoder.sizes["head_dim"])
    k[:, 1, 0] = broken
    engine.write(0, 0, 7, k, k)
    found = engine.read(0, 0, 7, 10)
    assert not torch.isfinite(found[:, :, 1]).all(-1).any()
    assert torch.allclose(found[:, :, ::2], torch.ones(()), rtol=0.01)


@pytest.mark.parametrize("kind", KINDS)
@given(decoder=decoders())
@settings(per_level, max_examples=3)
def test_places_that_there_are_not_are_refused(library: Library, kind: str, decoder: Decoder) -> None:
    decoder.sizes["cache_kind"] = KINDS[kind]
    engine, layers = NativeEngine(library, decoder.struct()), len(decoder.layers)
    rows = torch.zeros(decoder.sizes["kv_heads"], 2, decoder.sizes["head_dim"])
    for slot, layer, at in ((-1, 0, 0), (3, 0, 0), (0, -1, 0), (0, layers, 0), (0, 0, -1), (0, 0, 299)):
        with pytest.raises(LowdimError, match="refused"):
            engine.write(slot, layer, at, rows, rows)
        with pytest.raises(LowdimError, match="refused"):
            engine.read(slot, layer, at, at + 2)
    assert not engine.read(0, 0, 298, 300).any()


@pytest.mark.parametrize(("kind", "bits"), [("fp32", 32), ("bf16", 16), ("int8", 8), ("int4", 4)])
@given(decoder=decoders(), tokens=st.sampled_from((0, 1, 64, 65, 300)))
@settings(per_level, max_examples=5)
def test_memory_is_counted_in_pages(library: Library, kind: str, bits: int, decoder: Decoder, tokens: int) -> None:
    decoder.sizes["cache_kind"] = KINDS[kind]
    least = 32 if kind == "int4" else 16
    row = -(-decoder.sizes["head_dim"] // least) * least * bits // 8
    scales = {"int8": 1, "int4": 8 * -(-decoder.sizes["head_dim"] // 64)}.get(kind, 0)
    pages = -(-tokens * row // 4096) - (-tokens * scales * 2 // 4096)
    stripes = 2 * len(decoder.layers) * decoder.sizes["kv_heads"]
    assert NativeEngine(library, decoder.struct()).bytes_of(tokens) == 4096 * stripes * pages

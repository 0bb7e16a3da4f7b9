"""``ld_engine_step`` and ``ld_sample`` against float64, on arrays that end at forbidden pages."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.native import matrices as t
from tests.native.guard import guarded
from tests.native.matrices import Array, Matrix

from lowdim.core.errors import LowdimError
from lowdim.core.native import Library
from lowdim.infer.bench.timing import threads
from lowdim.infer.decode.engine import LayerStruct, ModelStruct, NativeEngine, bind_sample, layer_array

PRODUCTS = ("q", "k", "v", "o", "gate", "up", "down")
per_level = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def gelu_tanh(x: Array) -> Array:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def gelu(x: Array) -> Array:
    return torch.nn.functional.gelu(torch.from_numpy(x)).numpy()


@dataclass
class Decoder:
    """A random model, and the same computed in float64."""

    sizes: dict[str, Any]
    layers: list[dict[str, Any]]
    head: Matrix
    arrays: dict[str, Array]

    def struct(self) -> ModelStruct:
        layers = []
        for layer in self.layers:
            arrays = {name: t.address(layer[name]) for name in ("attention_norm", "mlp_norm", "q_norm", "k_norm")}
            products = {name: layer[name].struct for name in PRODUCTS}
            layers.append(LayerStruct(**products, **arrays, rotary=layer["rotary"], window=layer["window"]))
        pointers = {name: t.address(array) for name, array in self.arrays.items()}
        count = len(layers)
        return ModelStruct(**self.sizes, **pointers, layers=count, layer=layer_array(layers), head=self.head.struct)

    def logits(self, tokens: list[int]) -> Array:
        s, a = self.sizes, self.arrays
        x = a["embedding"][tokens].astype(np.float64) * s["embedding_scale"]
        for layer in self.layers:
            x = x + s["residual_scale"] * self._attention(layer, self._norm(x, layer["attention_norm"]))
            x = x + s["residual_scale"] * self._mlp(layer, self._norm(x, layer["mlp_norm"]))
        return product(self.head, self._norm(x, a["final_norm"]))

    def next_logits(self, token: int, caches: list[Array]) -> Array:
        """Of one more token, from what the cache holds of every layer, that token included."""
        s, a = self.sizes, self.arrays
        x = a["embedding"][[token]].astype(np.float64) * s["embedding_scale"]
        for layer, cache in zip(self.layers, caches, strict=True):
            count, h = cache.shape[2], self._norm(x, layer["attention_norm"])
            q = product(layer["q"], h).reshape(1, -1, s["head_dim"]).swapaxes(0, 1)
            q = self._turned(layer, q, layer["q_norm"], count - 1)
            k, v = np.repeat(cache, s["heads"] // s["kv_heads"], 1)
            mixed = self._mixed(layer, q, k, v, np.arange(count)[::-1][None])
            x = x + s["residual_scale"] * product(layer["o"], mixed.swapaxes(0, 1).reshape(1, -1))
            x = x + s["residual_scale"] * self._mlp(layer, self._norm(x, layer["mlp_norm"]))
        return product(self.head, self._norm(x, a["final_norm"]))[0]

    def keys_and_values(self, tokens: list[int]) -> Array:
        """Of the first layer, exact: [2, kv_heads, tokens, head_dim]."""
        layer, size = self.layers[0], self.sizes["head_dim"]
        x = self.arrays["embedding"][tokens].astype(np.float64) * self.sizes["embedding_scale"]
        h = self._norm(x, layer["attention_norm"])
        k, v = (product(layer[name], h).reshape(len(h), -1, size).swapaxes(0, 1) for name in "kv")
        return np.stack([self._turned(layer, k, layer["k_norm"]), v])

    def _mlp(self, layer: dict[str, Any], h: Array) -> Array:
        act = (silu, gelu_tanh, gelu)[self.sizes["activation"]]
        return product(layer["down"], act(product(layer["gate"], h)) * product(layer["up"], h))

    def _norm(self, x: Array, weight: Array) -> Array:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + self.sizes["norm_eps"]) * weight

    def _attention(self, layer: dict[str, Any], h: Array) -> Array:
        s, count = self.sizes, len(h)
        q, k, v = (product(layer[name], h).reshape(count, -1, s["head_dim"]).swapaxes(0, 1) for name in "qkv")
        q, k = self._turned(layer, q, layer["q_norm"]), self._turned(layer, k, layer["k_norm"])
        k, v = (np.repeat(part, s["heads"] // s["kv_heads"], 0) for part in (k, v))
        mixed = self._mixed(layer, q, k, v, np.arange(count)[:, None] - np.arange(count))
        return product(layer["o"], mixed.swapaxes(0, 1).reshape(count, -1))

    def _mixed(self, layer: dict[str, Any], q: Array, k: Array, v: Array, distance: Array) -> Array:
        scores = self.sizes["attention_scale"] * q @ k.swapaxes(1, 2)
        scores[:, (distance < 0) | (distance >= (layer["window"] or k.shape[1]))] = -np.inf
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mixed: Array = (weights / weights.sum(-1, keepdims=True)) @ v
        return mixed

    def _turned(self, layer: dict[str, Any], x: Array, norm: Array | None, at: int = 0) -> Array:
        x = x if norm is None else self._norm(x, norm)
        half = self.sizes["rotary_dim"] // 2
        if not layer["rotary"] or not half:
            return x
        cos, sin = (self.arrays[name][at : at + x.shape[1]].astype(np.float64) for name in ("cos", "sin"))
        a, b = x[..., :half], x[..., half : 2 * half]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin, x[..., 2 * half :]], -1)


def product(m: Matrix, x: Array) -> Array:
    bias = m.arrays["bias"]
    result: Array = x @ m.weight.T + (0 if bias is None else bias)
    return result


@st.composite
def decoders(draw: st.DrawFn, kind: int = t.FP32) -> Decoder:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    kv_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 6))
    head_dim, hidden = draw(st.sampled_from((2, 7, 16, 20, 64, 80))), draw(st.integers(1, 150))
    q, kv, mlp, vocab, positions = (
        kv_heads * group * head_dim,
        kv_heads * head_dim,
        draw(st.integers(1, 200)),
        50,
        300,
    )

    def matrix(rows: int, cols: int) -> Matrix:
        keep = t.kept(rng, "random", rows, cols, 0.5) if kind in t.PACKED and draw(st.booleans()) else None
        built = t.build(rng, kind, (rows, cols), keep=keep, bias=draw(st.booleans()))
        return built.point(lambda array: guarded(array, "behind"))

    def vector(size: int) -> Array:
        return guarded(rng.uniform(0.5, 1.5, size).astype(np.float32), "behind")

    shapes = {"q": (q, hidden), "k": (kv, hidden), "v": (kv, hidden), "o": (hidden, q)}
    shapes |= {"gate": (mlp, hidden), "up": (mlp, hidden), "down": (hidden, mlp)}
    layers: list[dict[str, Any]] = []
    for _ in range(draw(st.integers(1, 2))):
        layer: dict[str, Any] = {name: matrix(*shape) for name, shape in shapes.items()}
        layer |= {"attention_norm": vector(hidden), "mlp_norm": vector(hidden)}
        normed = draw(st.booleans())
        layer |= {name: vector(head_dim) if normed else None for name in ("q_norm", "k_norm")}
        layers.append(layer | {"rotary": draw(st.integers(0, 1)), "window": draw(st.sampled_from((0, 1, 5, 150)))})
    rotary_dim = draw(st.sampled_from((0, head_dim // 2 * 2, head_dim // 4 * 2)))
    angles = rng.uniform(0, 6, (positions, max(rotary_dim // 2, 1)))
    arrays = {
        "embedding": rng.standard_normal((vocab, hidden)).astype(np.float32),
        "cos": np.cos(angles).astype(np.float32),
        "sin": np.sin(angles).astype(np.float32),
        "final_norm": rng.uniform(0.5, 1.5, hidden).astype(np.float32),
    }
    sizes = {"heads": kv_heads * group, "kv_heads": kv_heads, "head_dim": head_dim, "rotary_dim": rotary_dim}
    sizes |= {"activation": draw(st.integers(0, 2)), "embedding_kind": 0, "cache_kind": 0, "hidden": hidden}
    sizes |= {"intermediate": mlp, "vocab": vocab, "slots": 3, "positions": positions, "norm_eps": 1e-5}
    sizes |= {"embedding_scale": 1.5, "attention_scale": head_dim**-0.5, "residual_scale": 0.7}
    placed = {name: guarded(array, "behind") for name, array in arrays.items()}
    return Decoder(sizes, layers, matrix(draw(st.integers(1, 70)), hidden), placed)


def ints(values: list[int]) -> Any:
    return (ctypes.c_int32 * len(values))(*values)


def step(
    engine: NativeEngine, slots: list[int], tokens: list[int], positions: list[int], rows: int, first: int = 0
) -> Array:
    logits = guarded(np.full((len(slots) - first, rows), np.nan, np.float32), "behind")
    engine.step(len(slots), ints(slots), ints(tokens), ints(positions), first, logits.ctypes.data, rows)
    return logits


@given(decoder=decoders(), length=st.sampled_from((1, 5, 17, 140, 290)), data=st.data())
@per_level
def test_matches_float64(library: Library, decoder: Decoder, length: int, data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    texts = [rng.integers(0, decoder.sizes["vocab"], length).tolist() for _ in range(2)]
    rows, engine = decoder.head.weight.shape[0], NativeEngine(library, decoder.struct())
    expected = [decoder.logits(text) for text in texts]
    at = 0
    while at < length:  # both texts in pieces: one token, or several of one sequence at once
        size = min(data.draw(st.sampled_from((1, 8, 60))), length - at)
        first = data.draw(st.integers(0, 2 * size - 1))
        pairs = [(slot, texts[slot][i], i) for i in range(at, at + size) for slot in (0, 1)]
        found = step(engine, *(list(part) for part in zip(*pairs, strict=True)), rows, first)  # type: ignore[arg-type]
        exact = np.stack([expected[slot][i] for slot, _, i in pairs[first:]])
        assert np.abs(found - exact).max() <= 3e-4 * np.abs(exact).max() + 1e-5  # scores of unnormed heads are large
        at += size
    engine.forget(0)
    again = step(engine, [0], texts[0][:1], [0], rows)[0]
    assert np.abs(again - expected[0][0]).max() <= 3e-4 * np.abs(expected[0]).max() + 1e-5


@pytest.mark.parametrize("kind", t.KINDS, ids=t.NAMES)
@given(data=st.data(), together=st.integers(2, 17), count=st.integers(1, 3))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=5)
def test_a_sequence_has_the_same_bits_in_any_company(
    library: Library, kind: int, data: st.DataObject, together: int, count: int
) -> None:
    decoder = data.draw(decoders(kind))
    decoder.sizes |= {"slots": together, "cache_kind": data.draw(st.integers(0, 3))}
    rng = np.random.default_rng(together)
    texts = rng.integers(0, decoder.sizes["vocab"], (together, 4)).tolist()
    rows, alone, batch = (
        decoder.head.weight.shape[0],
        *(NativeEngine(library, decoder.struct()) for _ in range(2)),
    )
    slots = list(range(together))
    for at in range(4):
        tokens = [text[at] for text in texts]
        with threads(count):
            found = step(batch, slots, tokens, [at] * together, rows)
        for slot in slots:
            single = step(alone, [slot], [tokens[slot]], [at], rows)
            np.testing.assert_array_equal(found[slot], single[0])


@given(decoder=decoders())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=5)
def test_what_is_out_of_range_is_refused(library: Library, decoder: Decoder) -> None:
    rows, engine = decoder.head.weight.shape[0], NativeEngine(library, decoder.struct())
    for slot, token, position in ((3, 0, 0), (-1, 0, 0), (0, 50, 0), (0, -1, 0), (0, 0, 300), (0, 0, -1)):
        with pytest.raises(LowdimError, match="refused"):
            step(engine, [slot], [token], [position], rows)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("heads", 101),
        ("layers", 0),
        ("kv_heads", 0),
        ("head_dim", 3),
        ("rotary_dim", 82),
        ("rotary_dim", 3),
        ("hidden", 31),
        ("intermediate", 0),
        ("vocab", -1),
        ("slots", 0),
        ("positions", 0),
        ("positions", 1 << 40),
        ("cache_kind", 4),
        ("cache_kind", -1),
        ("activation", 3),
        ("embedding", None),
        ("final_norm", None),
    ],
)
@given(decoder=decoders())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=2)
def test_sizes_that_do_not_fit_are_refused(library: Library, field: str, value: Any, decoder: Decoder) -> None:
    struct = decoder.struct()
    if getattr(struct, field) == value:
        return
    setattr(struct, field, value)
    with pytest.raises(LowdimError, match="refused"):
        NativeEngine(library, struct)


@given(seed=st.integers(0, 2**32), size=st.integers(1, 3000), scale=st.sampled_from((0.01, 1.0, 30.0)))
@per_level
def test_a_draw_reads_no_more_than_the_scores(library: Library, seed: int, size: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    scores = guarded((scale * rng.standard_normal(size)).astype(np.float32), "behind")
    best = np.argsort(-scores, kind="stable")
    sample = bind_sample(library)
    for top_k in (0, 1, size // 2, size, size + 5):
        token = sample(scores.ctypes.data, size, 0.7, top_k, 0.9, rng.random())
        assert 0 <= token < size
        if 0 < top_k < size:
            assert scores[token] >= scores[best[top_k - 1]]


def test_bad_arguments_of_a_draw(library: Library) -> None:
    sample, scores = bind_sample(library), np.zeros(4, np.float32)
    good = [scores.ctypes.data, 4, 1.0, 0, 1.0, 0.5]
    assert sample(*good) in range(4)
    for at, value in (
        (0, None),
        (1, 0),
        (2, 0.0),
        (2, float("nan")),
        (3, -1),
        (4, 0.0),
        (4, 1.5),
        (5, 1.0),
        (5, -0.1),
    ):
        assert sample(*good[:at], value, *good[at + 1 :]) == -2
    scores[2] = np.nan
    assert sample(*good) == -1

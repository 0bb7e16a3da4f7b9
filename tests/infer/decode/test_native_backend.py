from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from tests.infer.llamas import VARIANTS, tiny
from transformers import PreTrainedModel

from lowdim.core import native
from lowdim.core.errors import LowdimError, RecipeError
from lowdim.infer.decode import native_backend
from lowdim.infer.decode.backend import BackendFull
from lowdim.infer.decode.hf_backend import HFBackend
from lowdim.infer.decode.native_backend import NativeBackend
from lowdim.infer.decode.open import open_backend
from lowdim.infer.sparse.accelerate import accelerate

pytestmark = pytest.mark.skipif(native.library() is None, reason="no compiled kernels")

FP32, BF16 = 2e-4, 6e-2  # of the largest logit: what the engine promises against Transformers


@pytest.fixture(params=native.runtime_info().levels)
def compiled(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run with every instruction set of this machine."""
    found = native.library()
    assert found is not None
    before = found.level
    yield found.use(request.param)
    found.use(before)


@pytest.fixture
def threads() -> Iterator[Any]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def text(length: int, seed: int = 0, vocabulary: int = 96) -> list[int]:
    ids: list[int] = np.random.default_rng(seed).integers(0, vocabulary, length).tolist()
    return ids


def whole(model: PreTrainedModel, ids: list[int]) -> np.ndarray:
    """The logits of one forward of Transformers."""
    with torch.inference_mode():
        found: np.ndarray = model(torch.tensor([ids])).logits[0].float().numpy()
    return found


def stepped(backend: Any, ids: list[int]) -> np.ndarray:
    slot = backend.open()
    found = [backend.prefill(slot, ids[:1])]
    found += [backend.step([slot], [token])[0].copy() for token in ids[1:]]
    backend.close(slot)
    return np.stack(found)


def assert_close(found: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("name", VARIANTS)
def test_steps_and_prefill_give_the_logits_of_transformers(name: str) -> None:
    model, ids = tiny(name), text(40)
    expected, backend = whole(model, ids), NativeBackend(model)
    assert_close(stepped(backend, ids), expected, FP32)
    for first in (3, 8, 9, 25):  # in the engine, and in torch
        slot = backend.open()
        assert_close(backend.prefill(slot, ids[:first]), expected[first - 1], FP32)
        assert_close(backend.prefill(slot, ids[first:39]), expected[38], FP32)
        assert_close(backend.step([slot], [ids[39]])[0], expected[39], FP32)
        backend.close(slot)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("multiplied", [True, False])
@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma", "mistral-window"])
def test_bf16(name: str, multiplied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where torch would emulate products of bf16, prompts go through the matrices of the steps."""
    monkeypatch.setattr("lowdim.infer.decode.families.multiplies_bf16", lambda: multiplied)
    model, ids = tiny(name, torch.bfloat16), text(40)
    expected, backend = whole(tiny(name), ids), NativeBackend(model)
    real, seen = torch.nn.Linear.forward, list[object]()
    monkeypatch.setattr(torch.nn.Linear, "forward", lambda layer, x: (seen.append(x), real(layer, x))[1])
    assert_close(stepped(backend, ids), expected, BF16)
    slot = backend.open()
    assert_close(backend.prefill(slot, ids), expected[-1], BF16)
    assert bool(seen) == multiplied


@pytest.mark.parametrize("name", ["llama", "llama-yarn", "mistral-window", "qwen3", "gemma", "smollm3"])
def test_greedy_text_is_that_of_transformers(name: str) -> None:
    model, prompt = tiny(name), text(12)
    expected = model.generate(torch.tensor([prompt]), max_new_tokens=256, do_sample=False)[0, 12:].tolist()  # type: ignore[operator]
    backend = NativeBackend(model)
    slot = backend.open()
    logits, found = backend.prefill(slot, prompt), []
    for _ in range(256):
        found.append(int(logits.argmax()))
        logits = backend.step([slot], found[-1:])[0]
    assert found == expected


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("kind", ["fp32", "bf16", "int8", "int4", "int3"])
@pytest.mark.parametrize("sparse", [True, False])
def test_packed_and_dense_layers_of_every_kind(kind: str, sparse: bool) -> None:
    model = tiny("llama-biases", hidden_size=72, intermediate_size=200)
    if sparse:
        with torch.no_grad():
            for layer in model.modules():
                if isinstance(layer, torch.nn.Linear):
                    layer.weight *= torch.rand(layer.weight.shape, generator=torch.Generator().manual_seed(3)) > 0.6
    accelerate(model, dtype=kind)
    ids = text(30)
    peer, backend = HFBackend(model), NativeBackend(model)
    # the cache in bf16 is the main difference, and a code of an activation may round the other way
    assert_close(stepped(backend, ids), stepped(peer, ids), FP32 if kind == "fp32" else BF16)
    slot = backend.open()
    assert_close(backend.prefill(slot, ids), peer.prefill(peer.open(), ids), FP32 if kind == "fp32" else BF16)


def test_layers_of_several_kinds_in_one_model() -> None:
    model = tiny("llama")
    expected = whole(model, text(20))
    for layer, kind in ((model.model.layers[0].self_attn, "int8"), (model.model.layers[1].mlp, "bf16")):
        for name, child in list(layer.named_children()):
            if isinstance(child, torch.nn.Linear) and name != "v_proj":
                setattr(layer, name, native_backend_layer(child, kind))
    assert_close(stepped(NativeBackend(model), text(20)), expected, BF16)


def native_backend_layer(linear: torch.nn.Linear, kind: str) -> torch.nn.Module:
    from lowdim.infer.sparse.linear import SparseLinear

    return SparseLinear.from_linear(linear, dtype=kind, packed=False)


@pytest.fixture(scope="module")
def wide() -> PreTrainedModel:
    """Large enough for several threads."""
    return tiny("llama", hidden_size=240, intermediate_size=1000, head_dim=32, num_attention_heads=6)


@pytest.mark.usefixtures("compiled")
def test_any_number_of_threads_gives_the_same_bits(wide: PreTrainedModel, threads: Any) -> None:
    backend, ids, found = NativeBackend(wide, slots=80), text(300), []
    for count in (1, 2, 5):
        threads(count)
        slots = [backend.open() for _ in range(70)]
        logits = [backend.prefill(slots[0], ids[:5]), backend.prefill(slots[1], ids[:8])]
        logits.append(backend.step(slots, ids[:70]).copy())
        logits += [backend.step(slots[:1], ids[i : i + 1]).copy() for i in range(6, 300)]
        found.append(np.concatenate([one.ravel() for one in logits]))
        for slot in slots:
            backend.close(slot)
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("count", [2, 8, 9, 66])
def test_a_sequence_does_not_depend_on_its_neighbours(wide: PreTrainedModel, count: int) -> None:
    backend, texts = NativeBackend(wide, slots=count), [text(12, seed) for seed in range(count)]
    expected = {seed: stepped(backend, texts[seed]) for seed in {0, 1, count - 1}}
    slots = [backend.open() for _ in texts]
    for at in range(12):
        some = [i for i in range(count) if i in expected or at < 11]  # neighbours come and go
        found = backend.step([slots[i] for i in some], [texts[i][at] for i in some])
        for i, logits in expected.items():
            assert_close(found[some.index(i)], logits[at], 1e-5)


def test_chunks_of_a_prompt_are_the_prompt(wide: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    backend, ids = NativeBackend(wide, slots=3), text(90)
    one = backend.prefill(backend.open(), ids)
    several = backend.open()
    for begin, end in ((0, 1), (1, 30), (30, 37), (37, 89), (89, 90)):
        last = backend.prefill(several, ids[begin:end])
    monkeypatch.setattr(native_backend, "CHUNK", 16)
    small = backend.prefill(backend.open(), ids)
    assert_close(last, one, FP32)
    assert_close(small, one, FP32)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("name", ["llama", "mistral-window"])
@pytest.mark.parametrize("length", [127, 129, 2300])
def test_long_texts(name: str, length: int) -> None:
    extra = {"sliding_window": 150} if name == "mistral-window" else {}
    model, ids = tiny(name, max_position_embeddings=2400, **extra), text(length + 3)
    expected, backend = whole(model, ids), NativeBackend(model)
    slot = backend.open()
    assert_close(backend.prefill(slot, ids[:length]), expected[length - 1], FP32)
    for at in range(length, length + 3):
        assert_close(backend.step([slot], [ids[at]])[0], expected[at], FP32)


def test_slots_are_closed_and_used_again() -> None:
    backend = NativeBackend(tiny("llama"), slots=2)
    expected = stepped(backend, text(30))
    first, second = backend.open(), backend.open()
    backend.prefill(first, text(60, 1))
    backend.prefill(second, text(50, 2))
    with pytest.raises(BackendFull):
        backend.open()
    backend.close(first)
    assert np.array_equal(stepped(backend, text(30)), expected)
    assert backend.length(second) == 50


def test_a_closed_sequence_gives_its_memory_back() -> None:
    backend = NativeBackend(tiny("llama", max_position_embeddings=4096))
    engine, slot = backend._engine, backend.open()
    backend.prefill(slot, text(4000))
    assert engine.read(slot, 1, 2000, 3000).count_nonzero()
    backend.close(slot)
    assert not engine.read(slot, 1, 0, 4000).count_nonzero()


def test_unused_room_takes_no_memory() -> None:
    import psutil

    process = psutil.Process()
    before = process.memory_info().rss
    backend = NativeBackend(tiny("llama", max_position_embeddings=1 << 20, num_key_value_heads=4), slots=64)
    assert 64 * backend.cache_bytes(1 << 20) > 16 << 30
    slot = backend.open()
    backend.prefill(slot, text(20))
    backend.step([slot], [1])
    assert process.memory_info().rss - before < 300 << 20


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("name", ["llama", "llama-one-kv-head", "llama-all-kv-heads", "mistral-window", "qwen3"])
@pytest.mark.parametrize(("cache", "tolerance"), [("fp32", FP32), ("bf16", BF16), ("int8", BF16), ("int4", 0.4)])
def test_a_rounded_cache_is_near_and_is_read_alike_by_steps_and_prefill(
    name: str, cache: str, tolerance: float
) -> None:
    model, ids = tiny(name), text(40)
    backend, exact = NativeBackend(model, cache=cache), whole(model, ids)
    found = stepped(backend, ids)
    assert_close(found, exact, tolerance)
    assert (np.abs(found - stepped(NativeBackend(model), ids)).max() > 0) == (cache != "fp32")
    slot = backend.open()
    assert np.array_equal(np.concatenate([backend.score(slot, ids[:9]), backend.score(slot, ids[9:])]), found)
    backend.close(slot)
    slot = backend.open()
    assert_close(backend.prefill(slot, ids[:25]), exact[24], tolerance)
    assert_close(backend.prefill(slot, ids[25:]), exact[39], tolerance)


def test_a_code_for_each_number_and_a_scale_for_each_row() -> None:
    model = tiny("llama", hidden_size=128, head_dim=64, max_position_embeddings=4096)
    sizes = {kind: NativeBackend(model, cache=kind).cache_bytes(4096) for kind in ("fp32", "bf16", "int8", "int4")}
    assert sizes["fp32"] == 2 * sizes["bf16"]
    assert sizes["int8"] == sizes["bf16"] * 33 / 64
    assert sizes["int4"] == sizes["bf16"] * 3 / 8


def test_a_cache_that_there_is_not_is_refused() -> None:
    with pytest.raises(RecipeError, match="cache: there is no 'int5'"):
        open_backend(tiny("llama"), cache="int5")


def test_what_cannot_be_appended_is_refused_and_changes_nothing() -> None:
    backend = NativeBackend(tiny("llama"), slots=2, max_length=8)
    one, other = backend.open(), backend.open()
    backend.prefill(one, [1] * 8)
    for ids, problem in (
        ([], "empty"),
        ([96], "belong to the model"),
        ([-1], "must lie"),
        ([1] * 9, "does not fit"),
    ):
        with pytest.raises(LowdimError, match=problem):
            backend.prefill(other, ids)
    with pytest.raises(LowdimError, match="does not fit"):
        backend.step([other, one], [1, 1])
    assert (backend.length(one), backend.length(other)) == (8, 0)


def test_too_much_room_is_a_clear_error() -> None:
    with pytest.raises(LowdimError, match="shorter context or fewer slots"):
        open_backend(tiny("llama", max_position_embeddings=1 << 30), slots=1 << 20, max_length=1 << 30)


def test_broken_weights_show_in_the_logits_and_harm_nothing_else() -> None:
    model = tiny("llama-biases")
    with torch.no_grad():
        model.model.embed_tokens.weight[7] = float("nan")
    backend = NativeBackend(model, slots=2)
    expected = stepped(backend, [1, 2, 3])
    bad, good = backend.open(), backend.open()
    found = backend.step([bad, good], [7, 1])
    assert np.isnan(found[0]).all()
    assert_close(found[1], expected[0], 1e-5)


@pytest.mark.nightly
def test_greedy_text_of_a_real_model_is_that_of_transformers() -> None:
    from transformers import AutoTokenizer

    from lowdim.models.disk.source import resolve
    from lowdim.models.load import load

    path = resolve("builtin:smollm2-135m").path
    model = load(path, dtype=torch.float32)
    prompt = AutoTokenizer.from_pretrained(path)("The history of the city of Rome begins with")["input_ids"]
    expected = model.generate(torch.tensor([prompt]), max_new_tokens=256, do_sample=False, eos_token_id=None)  # type: ignore[operator]
    backend = NativeBackend(model)
    slot = backend.open()
    logits, found = backend.prefill(slot, prompt), list(prompt)
    for _ in range(256):
        found.append(int(logits.argmax()))
        logits = backend.step([slot], found[-1:])[0]
    assert found == expected[0].tolist()

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tests.models.tiny_configs import randomise, tiny_config
from tests.models.zoo import ZOO
from transformers import AutoModelForCausalLM, PreTrainedModel

from lowdim.core.errors import LowdimError
from lowdim.infer.decode.backend import BackendFull, end_tokens
from lowdim.infer.decode.hf_backend import HFBackend
from lowdim.infer.decode.open import open_backend

IDS = [5, 9, 2, 33, 71, 8, 15, 4, 60, 61, 62, 7]


@pytest.mark.parametrize("kind", ["gpt2", "opt", "bloom", "falcon", "gpt-neox", "mixtral", "gemma3"])
def test_every_architecture_token_by_token_gives_the_logits_of_one_forward(kind: str) -> None:
    model = ZOO[kind]()
    with torch.inference_mode():
        expected = model(torch.tensor([IDS])).logits[0].numpy()
    backend = HFBackend(model, slots=2)
    one, other = backend.open(), backend.open()
    close = {"rtol": 1e-4, "atol": 1e-4}
    np.testing.assert_allclose(backend.prefill(one, IDS[:4]), expected[3], **close)
    np.testing.assert_allclose(backend.prefill(one, IDS[4:9]), expected[8], **close)
    np.testing.assert_allclose(backend.prefill(other, IDS[:9]), expected[8], **close)
    for at in (9, 10, 11):
        found = backend.step([other, one], [IDS[at]] * 2)
        np.testing.assert_allclose(found, expected[[at, at]], **close)
    assert backend.length(one) == backend.length(other) == len(IDS)
    assert backend.vocab_size == 96


def made(kind: str, **settings: Any) -> PreTrainedModel:
    config = tiny_config(kind)
    config = type(config)(**(config.to_dict() | settings)) if settings else config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        randomise(model)
    model.tie_weights()
    return model.eval()


ROTATION = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 20}
ROTATION |= {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 4.0, 8.0, 16.0]}  # type: ignore[dict-item]
PIECEWISE = {
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "bamba": {"attn_layer_indices": [1]},
    "zamba": {},
    "mamba": {},
    "mamba2": {},
    "rwkv": {},
    "qwen3_next": {},
    "lfm2": {},
    "phi3": {"rope_parameters": ROTATION, "original_max_position_embeddings": 20, "hidden_size": 32},
}
"""Models with recurrent states, with caches of other names, that do not count what they hold, or turn keys anew."""


@pytest.mark.parametrize("cuts", [[40], [16, 16, 8], [16, 3, *[1] * 6, 15], [18, *[1] * 22]], ids=str)
@pytest.mark.parametrize("kind", PIECEWISE)
def test_a_text_in_pieces_gives_the_logits_of_the_whole(kind: str, cuts: list[int]) -> None:
    model, ids = made(kind, **PIECEWISE[kind]), [3 + (7 * at * at + at) % 60 for at in range(40)]
    backend, at = HFBackend(model, slots=2), 0
    slot, other = backend.open(), backend.open()
    backend.prefill(other, ids[5:30])  # must not be felt in the first
    for cut in cuts:
        found = backend.prefill(slot, ids[at : at + cut]) if cut > 1 else backend.step([slot], [ids[at]])[0]
        at += cut
        with torch.inference_mode():
            expected = model(torch.tensor([ids[:at]]), use_cache=False).logits[0, -1].numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["openai-gpt", "xlnet", "recurrent_gemma"])
def test_a_model_that_keeps_nothing_is_refused_when_it_is_opened(kind: str) -> None:
    with pytest.raises(LowdimError, match="keeps no key-value cache"):
        open_backend(made(kind))


@pytest.mark.parametrize("kind", ["xlstm", "blenderbot"])
def test_a_model_that_fails_with_its_cache_is_refused_when_it_is_opened(kind: str) -> None:
    with pytest.raises(LowdimError, match=r"fails with its cache, in Transformers itself \(.*Error: .*token by token"):
        open_backend(made(kind))


def test_slots_are_closed_and_used_again() -> None:
    backend = HFBackend(ZOO["gpt2"](), slots=1)
    slot = backend.open()
    first = backend.prefill(slot, IDS)
    with pytest.raises(BackendFull, match="1 slots"):
        backend.open()
    backend.close(slot)
    with pytest.raises(LowdimError, match="not open"):
        backend.length(slot)
    again = backend.open()
    assert backend.length(again) == 0
    assert np.array_equal(backend.prefill(again, IDS), first)


def test_what_cannot_be_appended_is_refused_and_changes_nothing() -> None:
    backend = HFBackend(ZOO["gpt2"](), max_length=8)
    slot = backend.open()
    for ids, problem in (
        ([], "empty"),
        ([96], "belong to the model"),
        ([-1], "must lie"),
        ([1] * 9, "does not fit"),
    ):
        with pytest.raises(LowdimError, match=problem):
            backend.prefill(slot, ids)
        assert backend.length(slot) == 0


def test_limits_come_from_the_model_or_the_caller() -> None:
    engine = open_backend(ZOO["gpt2"](), slots=3)
    assert (engine.backend.max_length, engine.backend.slots) == (128, 3)
    assert open_backend(ZOO["gpt2"](), max_length=20).backend.max_length == 20
    with pytest.raises(LowdimError, match="slots"):
        open_backend(ZOO["gpt2"](), slots=0)
    with pytest.raises(LowdimError, match="max_length"):
        open_backend(ZOO["gpt2"](), max_length=0)


def test_a_cache_of_the_native_engine_is_refused_where_transformers_runs_the_model() -> None:
    why = r"('gpt2' has no native|without compiled kernels)"
    with pytest.raises(LowdimError, match=rf"cache: 'int8' is the native engine's alone.*{why}"):
        open_backend(ZOO["gpt2"](), cache="int8")
    with pytest.raises(LowdimError, match="native engine alone"):
        HFBackend(ZOO["gpt2"]()).cache_bytes(1)


def test_end_tokens() -> None:
    model = SimpleNamespace(
        config=SimpleNamespace(eos_token_id=3), generation_config=SimpleNamespace(eos_token_id=[3, 5])
    )
    assert end_tokens(model) == {3, 5}
    model.generation_config = None
    assert end_tokens(model) == {3}
    model.config = SimpleNamespace(eos_token_id=None)
    assert end_tokens(model) == frozenset()

"""Plain words: each is said where it holds, and only there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from lowdim.infer.bench.advice import notes
from lowdim.infer.bench.result import LayerTime, ModelSpeed

WHOLE = {"name": "m", "random_weights": False, "random_zeros": False, "blocks": 4, "distinct_blocks": 4}


def model(engine: str = "lowdim", dtype: str = "bf16", sparsity: float = 0.0, **given: Any) -> ModelSpeed:
    usual: dict[str, Any] = {
        "backend": "native" if engine == "lowdim" else "generate",
        "reason": "",
        "tokens_per_s": 10.0,
        "quartiles": (9.0, 11.0),
        "prefill_tokens_per_s": 100.0,
        "prompt": 256,
        "bytes_per_token": 10**9,
        "bandwidth_share": 0.5,
        "kernels": {},
        "over_torch": 2.0,
        "over_dense": 1.5 if engine == "lowdim" else None,
        "prefill_over_torch": 0.93,
    }
    return ModelSpeed(engine=engine, dtype=dtype, sparsity=sparsity, **(usual | given))


def layer(sparsity: float, over_dense: float, dtype: str = "int8") -> LayerTime:
    return LayerTime(("q",), 1, 64, 64, "lowdim", dtype, sparsity, "packed", 1.0, 1, 0.5, 2.0, over_dense)


def say(*models: ModelSpeed, layers: tuple[LayerTime, ...] = (), level: str = "avx512", **subject: Any) -> str:
    return "\n".join(notes(WHOLE | subject, layers, models, level))


def test_what_layers_lie_in_is_said():
    said = say(model(sparsity=0.5, forms=("7 × int8: dense: packed 9 µs, dense 7 µs", "1 × int8: packed: small")))
    assert "What bf16 50% lies in, and why: 7 × int8: dense: packed 9 µs, dense 7 µs; 1 × int8: packed: small." in said


def test_dense_kernels_gain_nothing_by_zeros():
    assert "at none of the measured" in say(layers=(replace(layer(0.5, 1.2), kernel="dense int8, avx2"),))


def test_nothing_to_say():
    assert say(model("torch")) == ""


@pytest.mark.parametrize(
    ("subject", "words"),
    [
        ({"random_weights": True}, "weights are random numbers"),
        ({"random_zeros": True}, "drawn at random"),
        ({"blocks": 32}, "32 blocks cycle through 4 distinct ones"),
    ],
)
def test_what_is_not_real_is_said(subject, words):
    assert words in say(**subject)
    assert words not in say()


def test_a_missing_native_engine_is_named_with_its_reason():
    assert "over sparse layers: it is not a Llama." in say(model(backend="transformers", reason="it is not a Llama"))


def test_missing_kernels_are_said():
    assert "no compiled kernels" in say(level="torch")


def test_from_which_sparsity_on_it_pays():
    rows = (layer(0.3, 0.9), layer(0.5, 1.2), layer(0.7, 1.8))
    assert "int8: sparsity pays from about 50% zeros; at 30% it does not." in say(layers=rows)
    assert "at none of the measured sparsities" in say(layers=(layer(0.3, 0.7), layer(0.9, 1.0)))
    assert say(layers=(layer(0.5, 1.2), layer(0.7, 1.8))) == ""


def test_a_model_that_gains_nothing_by_its_zeros():
    text = say(model(sparsity=0.5, over_dense=0.98), model(dtype="int8", sparsity=0.5, over_dense=1.4))
    assert "does not pay here, over the dense model in this runtime: bf16 50% (x0.98)." in text
    assert "int8 50% (" not in text


def test_prefill_and_small_models():
    text = say(model("torch", bytes_per_token=2 * 10**8), model(sparsity=0.5))
    assert "Prefill of 256 tokens runs at up to 0.93 times torch bf16" in text
    assert "This is a small model" in text
    assert "small" not in say(model("torch"), model(sparsity=0.5))

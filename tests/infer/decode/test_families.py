from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.infer.llamas import VARIANTS, tiny
from tests.models.zoo import ZOO
from torch import nn
from transformers import LlamaForCausalLM, PreTrainedModel

from lowdim.core import native
from lowdim.infer.decode.families import FAMILIES, Unsupported, read
from lowdim.infer.decode.open import open_backend
from lowdim.infer.sparse.accelerate import accelerate


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_of_known_families_are_read(name: str) -> None:
    model = tiny(name)
    plan = read(model)
    assert len(plan.blocks) == 2
    assert plan.hidden == model.config.hidden_size
    assert plan.cache_dtype == torch.float32


def test_every_family_has_a_variant() -> None:
    assert {tiny(name).config.model_type for name in VARIANTS} == set(FAMILIES)


def test_weights_are_shared_and_not_copied() -> None:
    model = tiny("llama")
    plan = read(model)
    assert plan.blocks[0].gate.matrix.values.data_ptr() == model.model.layers[0].mlp.gate_proj.weight.data_ptr()
    assert plan.head.matrix.values.data_ptr() == plan.embedding.data_ptr() == model.lm_head.weight.data_ptr()


def test_the_cache_is_fp32_for_fp32_weights_alone() -> None:
    assert read(tiny("llama", torch.bfloat16)).cache_dtype == torch.bfloat16
    model = tiny("llama")
    accelerate(model, dtype="int8")
    assert read(model).cache_dtype == torch.bfloat16


def dynamic() -> PreTrainedModel:
    return tiny("llama", rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0})


def relu() -> PreTrainedModel:
    return tiny("llama", hidden_act="relu")


def hooked() -> PreTrainedModel:
    model = tiny("llama")
    model.model.layers[1].mlp.register_forward_hook(lambda *_: None)
    return model


def half() -> PreTrainedModel:
    return tiny("llama", torch.float16)


def odd_layer() -> PreTrainedModel:
    class Quantised(nn.Linear):
        pass

    model = tiny("llama")
    model.model.layers[1].mlp.up_proj = Quantised(32, 64, bias=False)
    return model


def odd_norm() -> PreTrainedModel:
    model = tiny("llama")
    model.model.norm = nn.LayerNorm(32)
    return model


def own_class() -> PreTrainedModel:
    class MyLlama(LlamaForCausalLM):
        pass

    model = tiny("llama")
    model.__class__ = MyLlama
    return model


def elsewhere() -> PreTrainedModel:
    return tiny("llama").to("meta")


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (dynamic, "'dynamic' depends on the length"),
        (relu, "activation 'relu'"),
        (hooked, "model.layers.1.mlp has forward hooks"),
        (half, "float16"),
        (odd_layer, "layers.1.mlp.up_proj is a Quantised"),
        (odd_norm, "norm is a LayerNorm"),
        (own_class, "MyLlama is not Transformers' own"),
        (elsewhere, "is on meta"),
        (ZOO["gpt2"], "'gpt2' has no native"),
        (ZOO["gemma3"], "'gemma3_text' has no native"),
        (ZOO["mixtral"], "'mixtral' has no native"),
    ],
)
def test_what_the_engine_does_not_compute_is_refused_in_one_line(build: Any, reason: str) -> None:
    with pytest.raises(Unsupported, match=reason) as refused:
        read(build())
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("build", [dynamic, relu, hooked])
def test_transformers_runs_what_the_engine_refuses(build: Any) -> None:
    engine = open_backend(build())
    assert engine.name == "transformers"
    assert engine.reason
    assert engine.backend.prefill(engine.backend.open(), [1, 2, 3]).shape == (96,)


@pytest.mark.skipif(native.library() is None, reason="no compiled kernels")
def test_the_engine_runs_what_it_can() -> None:
    engine = open_backend(tiny("qwen3"))
    assert (engine.name, engine.reason) == ("native", "")


def test_without_compiled_kernels_transformers_runs_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    from lowdim.infer.decode import native_backend

    monkeypatch.setattr(native_backend, "library", lambda: None)
    engine = open_backend(tiny("llama"))
    assert engine.name == "transformers"
    assert "without compiled kernels" in engine.reason

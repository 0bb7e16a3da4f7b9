"""A measurement ends by its time: less is measured, and what is left out is said."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.tiny_configs import tiny_config
from tests.models.zoo import ZOO
from transformers import AutoModelForCausalLM, Gemma3Config

from lowdim.core.progress import Silent
from lowdim.data.windows import Windows
from lowdim.infer.bench import bandwidth, decode, layers, models, run, timing
from lowdim.infer.bench.pair import measure_pair
from lowdim.infer.bench.result import Contestant, Result
from lowdim.infer.bench.settings import Settings
from lowdim.infer.bench.timing import Deadline


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "STREAMED", 2**16)
    monkeypatch.setattr(timing, "_TURN", 1e-5)
    monkeypatch.setattr(bandwidth, "BUFFER", 2**20)
    monkeypatch.setattr(models, "multiplies_bf16", lambda: True)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, half of it zeros."""
    path = tmp_path_factory.mktemp("models") / "tiny"
    model: Any = ZOO["llama"]()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "proj" in name:
                weight.copy_(layers.drop(weight, 0.5))
    model.save_pretrained(path)
    return path


TEXT = Windows(torch.arange(1, 81).view(10, 8), {"windows": 10})


def measured(path: Path, deadline: Deadline) -> Result:
    settings = Settings(model=str(path), dtypes=("fp32", "int8", "int4"), tokens=480)
    return run.measure(models.loaded_base(settings), settings, TEXT, Silent(), deadline, needed=("fp32",))


def test_when_the_time_is_up_the_needed_is_measured_and_the_rest_named(path: Path) -> None:
    found = measured(path, Deadline(0))
    assert [str(Contestant(m.engine, m.dtype, m.sparsity and 0.5)) for m in found.models] == [
        "torch bf16 dense",
        "torch fp32 dense",
        "lowdim fp32 dense",
        "lowdim fp32 50%",
    ]
    assert all(row.tokens_per_s > 0 and row.perplexity is None for row in found.models)
    (note,) = [note for note in found.notes if "Left out" in note]
    assert note.startswith("Left out, since 0 seconds were up: q_proj, ")
    assert note.endswith("lm_head, int8, int4, perplexity. lowdim bench measures it all.")
    assert {row.sparsity for row in found.layers} > set(layers.CURVE)
    assert len({(row.rows, row.cols) for row in found.layers}) == 1


def test_a_slow_machine_takes_the_time_it_was_given(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is slowed down; all rounds of all tokens would take four minutes."""

    def nll(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        time.sleep(0.03)
        return torch.nn.functional.cross_entropy(logits, ids)

    def step(self: Any, ids: Any, tokens: int) -> list[float]:
        time.sleep(0.02 * tokens)
        return [0.02] * tokens

    for kind in (decode.TorchDecoder, decode.LowdimDecoder):
        monkeypatch.setattr(kind, "decode", step)
        monkeypatch.setattr(kind, "prefill", lambda self, ids: time.sleep(0.1) or 0.1)
    monkeypatch.setattr("lowdim.evaluate.quality.perplexity.token_nll", nll)
    begun = time.monotonic()
    found = measured(path, Deadline(4))
    assert time.monotonic() - begun < 60  # 5, where no other work takes the cores
    assert 0 < found.protocol.get("windows", 1) <= 10
    assert all(row.tokens_per_s == pytest.approx(50, rel=0.01) for row in found.models)


def test_slow_tokens_are_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    class Slow:
        backend, reason = "", ""

        def decode(self, ids: Any, tokens: int) -> list[float]:
            nonlocal now
            now += tokens
            return [1.0] * tokens

        def prefill(self, ids: Any) -> float:
            nonlocal now
            now += 5
            return 5.0

    monkeypatch.setattr(timing.time, "monotonic", lambda: now)
    two = {Contestant("torch", "bf16"): Slow(), Contestant("lowdim", "bf16"): Slow()}
    for seconds, tokens in ((1000, 3 * 48), (64, 3 * 10), (0, decode.FEWEST), (10, decode.FEWEST)):
        begun = now
        found = decode.time_steps(two, 48, 100, seconds=seconds)
        assert {len(times) for times in found.values()} == {tokens}, seconds
        assert now - begun <= max(seconds, 4 + 8) + 8
    assert [len(times) for times in decode.time_prefill(two, 64, 100, seconds=11).values()] == [2, 2]


def built(kind: str, path: Path) -> Path:
    """Save a tiny model: one whose sizes stand in a part of its config, one of another memory, one of none."""
    text = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "sliding_window": 8}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 28, "patch_size": 14}
    config: Any = (
        tiny_config(kind)
        if kind != "gemma3"
        else Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    )
    with torch.random.fork_rng(devices=[]):
        AutoModelForCausalLM.from_config(config).save_pretrained(path)
    return path


@pytest.mark.parametrize("kind", ["gemma3", "mamba", "biogpt"])
def test_models_of_every_build_are_timed(kind: str, tmp_path: Path) -> None:
    settings = Settings(model=str(built(kind, tmp_path / kind)), dtypes=("fp32",), tokens=2)
    found = run.measure(models.loaded_base(settings), settings, None, Silent(), Deadline(0), needed=("fp32",))
    assert [(row.engine, row.tokens_per_s > 0) for row in found.models] == [("torch", True)] * 2 + [("lowdim", True)]


def test_a_finished_run_does_not_fail_for_a_model_that_cannot_be_continued(tmp_path: Path) -> None:
    path = built("openai-gpt", tmp_path / "model")
    assert "keeps no key-value cache" in measure_pair(path, path, torch.float32, 4)["note"]


@pytest.mark.parametrize("dtypes", [("fp32", "int8"), ("int8",)])
def test_torch_need_not_emulate_bf16_on_prompts_and_texts(
    path: Path, dtypes: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """There its fp32, if that is measured, is what prompts are set beside."""
    monkeypatch.setattr(models, "multiplies_bf16", lambda: False)
    settings = Settings(model=str(path), dtypes=dtypes, tokens=4)
    found = run.measure(models.loaded_base(settings), settings, TEXT, Silent(), Deadline())
    first, *others = found.models
    assert (first.engine, first.dtype, first.prefill_tokens_per_s, first.perplexity) == ("torch", "bf16", None, None)
    assert first.over_torch == 1.0 and all(row.over_torch > 0 for row in others)
    assert all(row.prefill_tokens_per_s and row.perplexity for row in others)
    torch_fp32 = [row for row in others if row.engine == "torch"]
    assert [row.prefill_over_torch for row in torch_fp32] == [1.0] * ("fp32" in dtypes)
    assert all((row.prefill_over_torch is None) == ("fp32" not in dtypes) for row in others)
    said = [note for note in found.notes if note.startswith("Prefill of")]
    assert ["torch fp32" in note for note in said] == [True] * ("fp32" in dtypes)


def test_a_model_in_bf16_is_measured_in_bf16_whatever_the_run_computed_in(path: Path, tmp_path: Path) -> None:
    AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).save_pretrained(tmp_path / "short")
    for place, dtype, kind in (
        (path, torch.float32, "fp32"),
        (tmp_path / "short", torch.float32, "bf16"),
    ):
        note = measure_pair(place, place, dtype, 4)["note"]
        assert f"generate ({kind})" in note and f"runtime ({kind})" in note

"""``lowdim plan-training``: the counts are those of real optimizers and real tensors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.train.optimizers.projections import reachable_bytes
from torch.profiler import profile
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MambaConfig,
    MixtralConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from lowdim.core import registry
from lowdim.core.errors import LowdimError
from lowdim.core.recipe.families import build
from lowdim.evaluate.cost.memory import saved_bytes
from lowdim.models.load import load
from lowdim.models.walk.skeleton import empty_model
from lowdim.nn.blocks import linear_layers
from lowdim.nn.int8 import Int8Weight
from lowdim.train.loop import Loop
from lowdim.train.nm.from_scratch import SparseFromScratch
from lowdim.train.nm.fst import FST
from lowdim.train.optimizers.plan import Passes, Way, way, ways
from lowdim.train.optimizers.q_galore import QGaLore

CASES: list[dict[str, Any]] = [
    *({"name": name} for name in registry.names("optimizer")),
    *({"name": "galore", "inner": inner} for inner in ("adamw8bit", "adafactor", "sgd")),
    *({"name": "galore", "side": side} for side in ("reverse_std", "full")),
    {"name": "galore", "projector": "random"},
    {"name": "q-galore", "direction_bits": 32},
    {"name": "apollo", "rank": 1, "channels": "tensor"},
]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_weights_and_state_are_those_of_a_real_step(case: dict[str, Any], dtype: torch.dtype, model: Path) -> None:
    known = registry.find("optimizer", case["name"]).settings()
    rule = build("optimizer", {key: value for key, value in {"rank": 5, "budget": 2}.items() if key in known} | case)
    planned = Way(empty_model(model, dtype), rule).held()
    real = load(model, dtype).train()
    optimizer = rule.build(real)
    ids = torch.arange(12).view(2, 6)
    real(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    parts = [
        part
        for p in real.parameters()
        for part in ((p.codes, p.scales, p.zeros) if isinstance(p, Int8Weight) else (p,))
    ]
    assert planned.weights == sum(part.nbytes for part in parts)
    slack = 16 * len(list(real.parameters()))  # counts of steps, and the norms of APOLLO
    assert planned.state == pytest.approx(reachable_bytes(optimizer, *parts), rel=1e-3, abs=slack)
    assert planned.gradients == sum(p.numel() * p.element_size() for p in real.parameters())


def test_activations_are_nearly_those_of_a_real_pass(model: Path) -> None:
    planned = Passes(16).of(way("adamw", empty_model(model, torch.float32)), 2).kept
    ids = torch.zeros(2, 16, dtype=torch.long)
    real = saved_bytes(load(model).train(), input_ids=ids, labels=ids, use_cache=False)
    assert real <= planned < 1.3 * real


HEADS = {"intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
SMALL = LlamaConfig(
    vocab_size=2048,
    hidden_size=128,
    intermediate_size=352,
    num_hidden_layers=4,
    num_attention_heads=4,
    attn_implementation="eager",
    tie_word_embeddings=False,
)


def allocated(nodes: Any) -> Iterator[tuple[int, int]]:
    """Yield when torch allocated how many bytes, of a profiler's events."""
    for node in nodes:
        if "Allocation" in str(node.tag):
            yield node.start_time_ns, node.extra_fields.alloc_size
        yield from allocated(node.children)


def measured(model: PreTrainedModel, optimizer: torch.optim.Optimizer, batch: int, length: int) -> int:
    """Return the most bytes that torch's allocator held at a time in a step, beside what it held before."""
    ids = torch.zeros(batch, length, dtype=torch.long)
    mask = torch.zeros(batch, 1, length, length, dtype=model.dtype)
    for on in (False, True):
        with profile(profile_memory=on) as found:
            model(input_ids=ids, labels=ids, attention_mask=mask, use_cache=False).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    events = torch.tensor(sorted(allocated(found.profiler.kineto_results.experimental_event_tree())))
    return int(events[:, 1].cumsum(0).max())


@pytest.mark.parametrize(
    ("name", "batch", "length"),
    [("adamw", 2, 16), ("galore", 2, 16), ("q-galore", 8, 64), ("lisa", 8, 64), ("lora", 8, 64), ("factors", 8, 64)],
)
def test_the_peak_is_that_of_a_real_step(name: str, batch: int, length: int) -> None:
    planned = Passes(length).of(way(name, empty_model(SMALL, torch.float32), 8, layerwise=True), batch).most
    made = way(name, AutoModelForCausalLM.from_config(SMALL).train(), 8, layerwise=True)
    model: Any = made.model
    assert planned == pytest.approx(measured(model, made.rule.build(model), batch, length), rel=0.01)


def test_what_a_2_4_rule_adds_is_what_a_loop_holds() -> None:
    held = way("fst", empty_model(SMALL, torch.bfloat16)).held()
    model = AutoModelForCausalLM.from_config(SMALL, dtype=torch.bfloat16).train()
    optimizer = torch.optim.AdamW(model.parameters())
    sparse = SparseFromScratch(linear_layers(model, attention=False), FST(), optimizer, 100)
    ids = torch.zeros(1, 8, dtype=torch.long)
    loop = Loop(
        model,
        optimizer,
        loss=lambda model, ids: model(input_ids=ids, labels=ids).loss,
        projected=sparse.projections(),
        riders=[sparse],
    )
    loop.run([ids])
    state = sum(t.nbytes for each in optimizer.state.values() for t in each.values() if t.dim())
    masks = sum(mask.nbytes for mask in sparse.masks.values())
    assert held.state == state
    assert held.masks == masks + sum(loop.copy_of(p).nbytes for p in sparse.projections())


def test_the_largest_batch_is_the_last_whose_pass_fits() -> None:
    passes, adamw = Passes(16), way("adamw", empty_model(SMALL, torch.float32))
    for most in (1, 2, 5):
        room = passes.of(adamw, most).most
        assert passes.largest(adamw, room) == most
        assert passes.largest(adamw, room - 1) == most - 1


@pytest.mark.parametrize("kind", [MixtralConfig, MambaConfig])
def test_experts_and_scans_are_planned_too(kind: type[PreTrainedConfig]) -> None:
    config = kind(vocab_size=64, hidden_size=32, num_hidden_layers=2, **(HEADS if kind is MixtralConfig else {}))
    planned = Passes(8).of(way("adamw", empty_model(config, torch.bfloat16)), 2).kept
    real = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).train()
    ids = torch.zeros(2, 8, dtype=torch.long)
    assert 1.0 <= planned / saved_bytes(real, input_ids=ids, labels=ids, use_cache=False) < 1.3


def test_experts_in_fp32_are_refused_with_what_to_do() -> None:
    empty = empty_model(MixtralConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1, **HEADS), torch.float32)
    with pytest.raises(
        LowdimError, match=r"a MixtralForCausalLM does not run on shapes alone: .*Plan a mixture of exp"
    ):
        Passes(8).of(way("adamw", empty), 1)


def test_the_command_prints_a_row_for_each(run, model: Path, tmp_path: Path) -> None:
    done = run("plan-training", model, "--batch", "2", "--length", "32", "--json", tmp_path / "plan.json")
    assert done.exit_code == 0, done.output
    sizes = json.loads((tmp_path / "plan.json").read_text())["methods"]
    assert list(sizes) == ways() and {*registry.names("optimizer"), "ows", "s-ste", "lora", "factors"} <= set(sizes)
    assert all(name in done.stdout for name in sizes)
    assert sizes["q-galore"]["weights"] < sizes["galore"]["weights"] == sizes["adamw"]["weights"]
    assert sizes["galore"]["state"] < sizes["adamw"]["state"] < sizes["fst"]["state"] + sizes["fst"]["masks"]
    assert max(sizes["lora"]["state"], sizes["lisa"]["state"]) < sizes["adamw"]["state"]
    one = run("plan-training", model, "--optimizer", "galore", "--layerwise", "--rank", "2", "--json", tmp_path / "one")
    layerwise = json.loads((tmp_path / "one").read_text())["methods"]["galore"]
    assert one.exit_code == 0 and layerwise["gradients"] < sizes["galore"]["gradients"] / 3


def test_memory_tells_the_largest_batch_and_the_largest_model(run, tmp_path: Path) -> None:
    flags = ("--length", "16", "--optimizer", "adamw,q-galore", "--layerwise", "--memory", "0.2", "--json")
    done = run("plan-training", "9m", *flags, tmp_path / "plan.json")
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "plan.json").read_text())
    assert (found["parameters"], found["memory"]) == (8_995_968, 0.2)
    assert [(each["batch"], each["model"]) for each in found["methods"].values()] == [(13, "9m"), (21, "20m")]


def test_a_method_that_cannot_train_the_model_is_left_out_unless_it_is_named(
    run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: QGaLore, model: torch.nn.Module) -> None:
        raise LowdimError("no such layer. Set weight_bits=32.")

    monkeypatch.setattr(QGaLore, "check_model", refuse)
    done = run("plan-training", model, "--json", tmp_path / "plan.json")
    assert done.exit_code == 0, done.output
    assert "q-galore is left out: no such layer" in done.stdout
    assert list(json.loads((tmp_path / "plan.json").read_text())["methods"]) == [n for n in ways() if n != "q-galore"]
    named = run("plan-training", model, "--optimizer", "q-galore")
    assert named.exit_code != 0 and "Set weight_bits=32" in named.stderr


def test_what_is_wrong_is_said(run, model: Path) -> None:
    for flags, said in (
        (["--optimizer", "galor"], "unknown optimizer 'galor'"),
        (["--rank", "999", "--optimizer", "galore"], "rank=999 exceeds the smaller side"),
        (["--rank", "999", "--optimizer", "lora"], "rank=999 exceeds the smaller side"),
        (["--rank", "999", "--optimizer", "factors"], "rank=999 of a layer"),
        (["--dtype", "int8"], "--dtype is float32 or bfloat16"),
    ):
        done = run("plan-training", model, *flags)
        assert done.exit_code != 0 and said in done.output

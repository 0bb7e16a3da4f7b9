"""``lowdim plan-training``: the counts are those of real optimizers and real tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.train.optimizers.projections import reachable_bytes

from lowdim.core import registry
from lowdim.core.errors import LowdimError
from lowdim.core.recipe.families import build
from lowdim.evaluate.cost.memory import saved_bytes
from lowdim.models.load import load
from lowdim.models.walk.skeleton import empty_model
from lowdim.nn.int8 import Int8Weight
from lowdim.train.optimizers.plan import activation_bytes, plan_training
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
    planned = plan_training(empty_model(model, dtype), rule)
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
    planned = activation_bytes(empty_model(model, torch.float32), 2, 16)
    ids = torch.zeros(2, 16, dtype=torch.long)
    real = saved_bytes(load(model).train(), input_ids=ids, labels=ids, use_cache=False)
    assert real <= planned < 1.3 * real


def test_the_command_prints_a_row_for_each(run, model: Path, tmp_path: Path) -> None:
    done = run("plan-training", model, "--batch", "2", "--length", "32", "--json", tmp_path / "plan.json")
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "plan.json").read_text())
    assert list(found["bytes"]) == registry.names("optimizer")
    assert all(name in done.stdout for name in found["bytes"])
    sizes = found["bytes"]
    assert sizes["q-galore"]["weights"] < sizes["galore"]["weights"] == sizes["adamw"]["weights"]
    assert sizes["galore"]["state"] < sizes["adamw"]["state"]
    one = run("plan-training", model, "--optimizer", "galore", "--layerwise", "--rank", "2", "--json", tmp_path / "one")
    layerwise = json.loads((tmp_path / "one").read_text())["bytes"]["galore"]
    assert one.exit_code == 0 and layerwise["gradients"] < sizes["galore"]["gradients"] / 3


def test_an_optimizer_that_cannot_train_the_model_is_left_out_unless_it_is_named(
    run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: QGaLore, model: torch.nn.Module) -> None:
        raise LowdimError("no such layer. Set weight_bits=32.")

    monkeypatch.setattr(QGaLore, "check_model", refuse)
    done = run("plan-training", model, "--json", tmp_path / "plan.json")
    assert done.exit_code == 0, done.output
    assert "q-galore is left out: no such layer" in done.stdout
    found = json.loads((tmp_path / "plan.json").read_text())["bytes"]
    assert list(found) == [name for name in registry.names("optimizer") if name != "q-galore"]
    named = run("plan-training", model, "--optimizer", "q-galore")
    assert named.exit_code != 0 and "Set weight_bits=32" in named.stderr


def test_what_is_wrong_is_said(run, model: Path) -> None:
    for flags, said in (
        (["--optimizer", "galor"], "unknown optimizer 'galor'"),
        (["--rank", "999", "--optimizer", "galore"], "rank=999 exceeds the smaller side"),
        (["--dtype", "int8"], "--dtype is float32 or bfloat16"),
    ):
        done = run("plan-training", model, *flags)
        assert done.exit_code == 2 and said in done.output

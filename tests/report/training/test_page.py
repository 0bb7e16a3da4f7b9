"""The page of sparse training: what it says of a made-up run, and what it refuses."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest

from lowdim.core.errors import CheckpointError
from lowdim.report.build import build
from lowdim.report.training.facts import beyond, lines, verdict
from lowdim.report.training.page import render
from lowdim.report.training.rules import MET, OPEN, PART, rules

LAYERS = {"hidden1": (1000, 50, 0.07), "hidden2": (400, 90, 0.3)}
RECIPE = {
    "data": {"name": "digits"},
    "net": {"name": "mlp", "hidden": [20, 20]},
    "training": {"name": "rigl", "every": 10},
    "sparsity": 0.9,
    "allocation": "erk",
    "initialisation": None,
    "pattern": "unstructured",
    "epochs": 3,
    "seed": 0,
}
RUN = {
    "stages": [{"name": "Dense", "seconds": 3.5}],
    "peak_bytes": 5e8,
    "device": "cpu",
    "machine": {"cpu": "x", "cores": 2},
    "command": "lowdim train-sparse --data digits",
}


def member(accuracy: float, *, sparse: bool, flops: float, updates: int = 0) -> dict[str, Any]:
    layers = [
        {"name": f"{n}.weight", "shape": [1, s], "size": s, "initial": k, "kept": k, "explored": r}
        for n, (s, k, r) in LAYERS.items()
    ]
    kept = {layer["name"]: layer["kept"] for layer in layers}
    memory = {name: {"total": 1000 * (i + 1)} for i, name in enumerate(("dense", "masked", "sparse"))}
    return {
        "net": RECIPE["net"],
        "parameters": 1500,
        "kept": 240 if sparse else 1500,
        "sparsity": 0.9 if sparse else None,
        "explored": 0.14 if sparse else None,
        "masks": "ab" * 32 if sparse else None,
        "layers": layers if sparse else [],
        "dense": [{"name": "head.weight", "size": 100, "reason": "head"}] if sparse else [],
        "curve": [
            {
                "epoch": e,
                "step": 10 * e,
                "loss": 1 / e,
                "validation_loss": 1 / e,
                "validation_accuracy": accuracy - 0.1 / e,
            }
            for e in (1, 2, 3)
        ],
        "updates": [
            {
                "step": 10 * (i + 1),
                "sparsity": 0.9,
                "explored": 0.1 + 0.02 * i,
                "kept": kept,
                "dropped": dict.fromkeys(kept, 5 - i),
                "grown": dict.fromkeys(kept, 5 - i),
            }
            for i in range(updates)
        ],
        "test": {
            "accuracy": accuracy,
            "loss": 0.3,
            "calibration_error": 0.02,
            "noisy_accuracy": 0.7,
            "by_difficulty": [1.0, 0.95, 0.6],
        },
        "costs": {
            "training_flops": flops,
            "inference_flops": flops / 100,
            "training_bytes": memory,
            "inference_bytes": memory,
            "uncounted": [],
        },
    }


@pytest.fixture
def facts() -> dict[str, Any]:
    return {
        "schema": 1,
        "lowdim": "0.1.0",
        "versions": {"torch": "2"},
        "recipe": copy.deepcopy(RECIPE),
        "data": {"name": "digits", "test": 400, "sha256": "cd" * 32},
        "steps": {"per_epoch": 10, "total": 30},
        "execution": "masked",
        "members": {
            "dense": member(0.9, sparse=False, flops=1e9),
            "small": member(0.86, sparse=False, flops=1e8),
            "static": member(0.84, sparse=True, flops=1e8),
            "sparse": member(0.88, sparse=True, flops=1.2e8, updates=3),
        },
    }


def test_the_headline_by_hand(facts: dict[str, Any]) -> None:
    found = {line.role: line for line in lines(facts)}
    assert list(found) == ["dense", "small", "static", "sparse"]
    assert found["dense"].accuracy == "90.00 ± 1.50"
    assert (found["sparse"].title, found["sparse"].change, found["sparse"].flops) == (
        "Sparse, rigl",
        "−2.00",
        "0.12x",
    )
    assert found["sparse"].memory == "3.00 kB"
    assert found["dense"].memory == "1.00 kB"


def test_the_verdict_names_all_and_the_size_of_chance(facts: dict[str, Any]) -> None:
    text = verdict(facts)
    assert "90% zeros" in text
    assert "88.0%" in text
    assert "the dense network 90.0%" in text
    assert "Differences below 4.6 points can be chance" in text  # 2 sqrt(2) sqrt(.88 * .12 / 400)


def test_masks_that_hardly_moved_are_told_of(facts: dict[str, Any]) -> None:
    updates = facts["members"]["sparse"]["updates"]
    facts["members"]["sparse"]["updates"] = (updates * 6)[:6]
    assert "too seldom" not in verdict(facts)
    facts["members"]["sparse"]["updates"] = updates[:1]
    assert verdict(facts).endswith("too seldom to explore: lower training.every (now 10) or train longer.")
    facts["recipe"] = {**facts["recipe"], "training": {"name": "static"}}
    assert "too seldom" not in verdict(facts)


def test_a_complete_run_keeps_nine_rules_and_the_tenth_in_part(facts: dict[str, Any]) -> None:
    found = rules(facts)
    assert [rule.number for rule in found] == list(range(1, 11))
    assert [rule.state for rule in found] == [MET] * 9 + [PART]
    assert "+4.00 points" in found[4].says
    assert "0.12 of the dense ones" in found[6].says


def test_what_a_run_lacks_is_not_called_met(facts: dict[str, Any]) -> None:
    for role in ("dense", "small", "static"):
        del facts["members"][role]
    states = {rule.number: rule.state for rule in rules(facts)}
    assert (states[1], states[5], states[7], states[8]) == (OPEN, OPEN, PART, OPEN)
    assert "the dense network" not in verdict(facts)


def test_ratios_that_moved_are_not_called_told_apart(facts: dict[str, Any]) -> None:
    facts["members"]["sparse"]["layers"][0]["kept"] += 1
    facts["members"]["sparse"]["layers"][1]["kept"] -= 1
    assert rules(facts)[7].state == OPEN


def test_what_the_rules_ask_for_is_said(facts: dict[str, Any]) -> None:
    found = {rule.number: rule for rule in rules(facts)}
    for part in ("1,500 parameters, ", "240 kept, ", "FLOPs per example"):
        assert part in found[1].says
    assert "CPU kernels" in found[2].says
    assert "tensor cores" not in found[2].says
    assert "0.12 of the dense ones were spent, 1.2e8 of 1e9, which would train it for 25.0 epochs" in found[7].says
    facts["recipe"]["pattern"] = "2:4"
    assert "2:4; lowdim's CPU kernels" in rules(facts)[1].says
    assert "tensor cores of GPUs run 2:4" in rules(facts)[1].says


def test_resampled_masks_tell_positions_from_numbers(facts: dict[str, Any]) -> None:
    facts["members"]["sparse"]["layers"][0]["kept"] += 1
    facts["members"]["resampled"] = member(0.85, sparse=True, flops=1e8)
    assert rules(facts)[7].state == MET
    assert "layer 85%; the positions of this recipe +3.00 points" in rules(facts)[7].says
    assert [line.role for line in lines(facts)] == ["dense", "small", "static", "resampled", "sparse"]
    assert "Resampled" in render(facts, RUN)


def test_the_tenth_rule_is_kept_where_other_data_are_told_apart(facts: dict[str, Any]) -> None:
    facts["members"]["sparse"]["test"]["unlike_auroc"] = 0.75
    assert rules(facts)[9].state == MET
    assert "AUROC of 0.750" in rules(facts)[9].says
    del facts["members"]["sparse"]["test"]["noisy_accuracy"]
    assert rules(facts)[9].state == PART


def test_how_the_sparsity_arose(facts: dict[str, Any]) -> None:
    assert "Sparse from the first step: 90% zeros throughout" in rules(facts)[2].says
    sparse = facts["members"]["sparse"]
    for layer in sparse["layers"]:
        layer["initial"] = layer["size"]
    assert "From dense to 90% zeros" in rules(facts)[2].says


def test_words_have_no_noise_column(facts: dict[str, Any]) -> None:
    assert "With noise" in beyond(facts)[0]
    for each in facts["members"].values():
        del each["test"]["noisy_accuracy"]
    heads, rows = beyond(facts)
    assert "With noise" not in heads
    assert all(len(row) == len(heads) for row in rows)


def test_the_page_is_whole_and_needs_nothing(facts: dict[str, Any]) -> None:
    page = render(facts, RUN, "runs/x")
    assert page.count("<svg") == 6
    assert "<script" not in page
    assert not re.search(r'(src|href)="(?!https://arxiv|data:|#)', page)
    for text in (
        "MLP 20-20",
        "Ten rules",
        "head.weight",
        "lowdim train-sparse --recipe recipe.yaml --out runs/x",
    ):
        assert text in page
    assert render(facts, RUN, "runs/x") == page


def test_a_static_run_has_fewer_pictures(facts: dict[str, Any]) -> None:
    facts["members"]["sparse"]["updates"] = []
    assert render(facts, {}).count("<svg") == 4


def test_what_was_executed_is_said(facts: dict[str, Any]) -> None:
    assert "was no faster" in render(facts, RUN)
    facts["execution"] = "csr"
    page = render(facts, RUN)
    assert "was no faster" not in page
    assert "Execution: csr" in page


def test_skipped_updates_are_shown(facts: dict[str, Any]) -> None:
    facts["members"]["sparse"]["updates"].append({"step": 25, "skipped": "gradient of hidden1 holds NaN"})
    page = render(facts, RUN)
    assert "Step 25: gradient of hidden1 holds NaN" in page
    assert "1 update skipped" in page


def test_names_are_escaped(facts: dict[str, Any]) -> None:
    facts["data"]["name"] = "<script>alert(1)</script>"
    facts["members"]["sparse"]["dense"][0]["reason"] = "<b>"
    page = render(facts, RUN)
    assert "<script>" not in page
    assert "<b>" not in page


def test_what_is_damaged_or_newer_is_refused(facts: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for content, message in (
        ({**facts, "schema": 9}, "schema 9"),
        ({k: v for k, v in facts.items() if k != "steps"}, "'steps' is missing"),
    ):
        (out / "training.json").write_text(json.dumps(content))
        with pytest.raises(CheckpointError, match=message):
            build(out)
    (out / "training.json").write_text(json.dumps(facts))
    assert build(out).read_text().startswith("<!doctype html>")

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lowdim.core.errors import CheckpointError
from lowdim.models.disk import manifest

# As a pruning run writes it: every part of the schema.
FULL: dict[str, Any] = {
    "schema": 1,
    "lowdim": "0.1.0",
    "recipe": {"score": {"name": "wanda", "variant": False}, "sparsity": 0.5},
    "seed": 0,
    "storage": "packed",
    "model": {
        "source": "builtin:smollm2-135m",
        "revision": "sha256:b179",
        "architecture": "LlamaForCausalLM",
        "dtype": "bfloat16",
        "files": {"config.json": "aa"},
    },
    "data": {"calibration": {"source": "builtin:wiki", "hash": "ff", "samples": 8, "context": 512}},
    "versions": {"torch": "2.13.0"},
    "layers": {
        "model.layers.0.mlp.up_proj": {
            "numel": 8,
            "nonzeros": 4,
            "sparsity": 0.5,
            "block": 0,
            "target": 0.5,
            "error": 0.1,
            "rounding": 0.001,
        }
    },
    "skipped": [{"name": "lm_head", "reason": "tied"}],
    "sparsity": {"target": 0.5, "prunable": 0.5, "model": 0.4},
    "allocation": {"name": "owl", "values": {"model.layers.0.mlp.up_proj": 0.02}},
    "fallbacks": [{"layer": "x", "what": "damping", "detail": "x10"}],
    "hashes": {"masks": {"model.layers.0.mlp.up_proj": "ab"}, "files": {"config.json": "cd"}},
    "evaluation": {"perplexity": {"protocol": {}, "dense": 10.0, "sparse": 12.0, "difference": {"mean": 0.1}}},
    "probes": {"outliers": {"5": [0.1]}},
    "packed": {
        "format": "2",
        "weights": {"model.layers.0.mlp.up_proj.weight": [2, 4]},
        "quantized": {"model.layers.0.mlp.up_proj.weight": {"bits": 8, "group": 64, "dtype": "BF16"}},
    },
}


def test_round_trip_keeps_every_value_and_the_bytes(tmp_path: Path) -> None:
    text = manifest.to_text(manifest.parse(FULL))
    assert json.loads(text) == FULL
    (tmp_path / "lowdim.json").write_text(text)
    assert manifest.exists(tmp_path)
    assert manifest.to_text(manifest.read(tmp_path)) == text


def test_parts_that_do_not_apply_are_left_out() -> None:
    small = {key: FULL[key] for key in ("schema", "lowdim", "storage", "model")}
    assert not {"sparsity", "allocation", "packed"} & set(manifest.parse(small).to_dict())


def changed(path: str, value: object) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(json.dumps(FULL))
    *parents, last = path.split("/")
    place = data
    for key in parents:
        place = place[key]
    place[last] = value
    return data


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("schema", 2, "has schema 2; this lowdim reads up to 1. Upgrade"),
        ("schema", "one", "not valid at schema"),
        ("storage", "zipped", "not valid at storage"),
        ("colour", "red", "not valid at colour: Extra inputs are not permitted"),
        (
            "layers/model.layers.0.mlp.up_proj/numel",
            "many",
            r"not valid at layers\.model\.layers\.0\..*\.numel",
        ),
        ("layers/model.layers.0.mlp.up_proj/sparsity", float("nan"), "finite number"),
        ("model/license", "x", r"not valid at model\.license"),
        ("hashes/files", {"a": 1}, r"not valid at hashes\.files\.a"),
    ],
)
def test_what_is_not_valid_is_named(path: str, value: object, words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        manifest.parse(changed(path, value))


def test_an_overflowed_perplexity_can_be_recorded() -> None:
    record = manifest.parse(changed("evaluation", {"perplexity": {"sparse": float("inf"), "x": [float("nan")]}}))
    data = json.loads(manifest.to_text(record))
    assert data["evaluation"] == {"perplexity": {"sparse": "inf", "x": ["nan"]}}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 1}'])
def test_damaged_files(tmp_path: Path, text: str) -> None:
    (tmp_path / "lowdim.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"lowdim\.json"):
        manifest.read(tmp_path)


def test_a_missing_file(tmp_path: Path) -> None:
    assert not manifest.exists(tmp_path)
    with pytest.raises(CheckpointError, match=r"lowdim\.json is missing"):
        manifest.read(tmp_path)


def test_versions_are_those_installed() -> None:
    assert manifest.versions()["torch"] == torch.__version__

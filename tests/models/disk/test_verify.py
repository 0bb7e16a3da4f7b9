from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.models.results import pruned
from torch import Tensor

from lowdim.models.disk.checks import Check, perplexity, run_checks
from lowdim.models.disk.convert import convert
from lowdim.models.disk.verify import VerifyReport, verify
from lowdim.models.load import load

TOKENS = torch.arange(24).reshape(2, 12) + 3
NAMES = [
    "lowdim.json",
    "opens",
    "files",
    "tensors",
    "nonzeros",
    "masks",
    "sparsity",
    "generates",
    "perplexity",
]


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pruned(tmp_path_factory.mktemp("verify") / "out", shards=1)


@pytest.fixture
def copy(result: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(result, tmp_path / "copy"))


def edit(path: Path, **changes: Any) -> None:
    record = json.loads((path / "lowdim.json").read_text())
    (path / "lowdim.json").write_text(json.dumps(record | changes))


def outcome(path: Path, **options: Any) -> dict[str, Check]:
    return {check.name: check for check in run_checks(path, **options)}


def failed(checks: dict[str, Check]) -> set[str]:
    return {check.name for check in checks.values() if check.passed is False}


def rewrite(path: Path, name: str, change: Any) -> None:
    tensors = load_file(path / "model.safetensors")
    tensors[name] = change(tensors[name].clone())
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


WEIGHT = "model.layers.1.mlp.up_proj.weight"


def test_a_sound_result_passes_in_a_clean_process(result: Path, tmp_path: Path) -> None:
    value = perplexity(load(result), TOKENS, {})
    path = Path(shutil.copytree(result, tmp_path / "copy"))
    edit(path, evaluation={"perplexity": {"protocol": {"name": "x"}, "sparse": value}})
    report = verify(path, text_tokens=TOKENS)
    assert report.passed
    assert [check.name for check in report.checks] == NAMES
    assert all(check.passed for check in report.checks)
    assert "hashes match" in report.checks[2].detail


def test_packed_and_dense_generate_the_same(result: Path, tmp_path: Path) -> None:
    packed = outcome(convert(result, tmp_path / "packed", "packed"))
    dense = outcome(result)
    assert not failed(packed) | failed(dense)
    assert packed["generates"].detail == dense["generates"].detail
    assert len(json.loads(dense["generates"].detail)) == 10


def test_a_flipped_bit_in_any_file_is_seen(copy: Path) -> None:
    for name in ("config.json", "generation_config.json"):
        text = (copy / name).read_text()
        (copy / name).write_text(text + " ")
        assert outcome(copy)["files"].detail == f"changed: {name}"
        (copy / name).write_text(text)
    data = bytearray((copy / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (copy / "model.safetensors").write_bytes(data)
    assert "files" in failed(outcome(copy))


def test_a_lost_file_is_seen(copy: Path) -> None:
    (copy / "generation_config.json").unlink()
    assert outcome(copy)["files"].detail == "missing: generation_config.json"


def test_an_unrecorded_weight_file_is_seen(copy: Path) -> None:
    record = json.loads((copy / "lowdim.json").read_text())
    del record["hashes"]["files"]["model.safetensors"]
    edit(copy, hashes=record["hashes"])
    assert outcome(copy)["files"].detail == "not recorded: model.safetensors"


def test_a_filled_hole_is_seen(copy: Path) -> None:
    def fill(weight: Tensor) -> Tensor:
        weight.view(-1)[int((weight.view(-1) == 0).nonzero()[0])] = 1
        return weight

    rewrite(copy, WEIGHT, fill)
    checks = outcome(copy)
    assert failed(checks) == {"files", "nonzeros", "masks", "sparsity"}
    assert "model.layers.1.mlp.up_proj has" in checks["nonzeros"].detail


def test_a_moved_hole_is_seen(copy: Path) -> None:
    def move(weight: Tensor) -> Tensor:
        flat = weight.view(-1)
        zero, full = int((flat == 0).nonzero()[0]), int((flat != 0).nonzero()[0])
        flat[zero], flat[full] = flat[full].item(), 0
        return weight

    rewrite(copy, WEIGHT, move)
    checks = outcome(copy)
    assert failed(checks) == {"files", "masks"}
    assert "model.layers.1.mlp.up_proj has another mask" in checks["masks"].detail


def test_nan_is_seen(copy: Path) -> None:
    def poison(weight: Tensor) -> Tensor:
        weight.view(-1)[int((weight.view(-1) != 0).nonzero()[0])] = float("nan")
        return weight

    rewrite(copy, WEIGHT, poison)
    assert outcome(copy)["tensors"].detail == f"{WEIGHT} holds NaN or Inf"


def test_a_layer_that_is_not_there_is_seen(copy: Path) -> None:
    record = json.loads((copy / "lowdim.json").read_text())
    record["layers"]["ghost"] = {"numel": 4, "nonzeros": 2, "sparsity": 0.5}
    edit(copy, layers=record["layers"])
    assert "'ghost'" in outcome(copy)["nonzeros"].detail


def test_perplexity_is_compared(copy: Path, result: Path) -> None:
    assert outcome(copy)["perplexity"] == Check("perplexity", None, "none is recorded")
    value = perplexity(load(result), TOKENS, {})
    edit(copy, evaluation={"perplexity": {"protocol": {}, "dense": value * 0.9, "sparse": value}})
    assert outcome(copy)["perplexity"].passed is None
    assert outcome(copy, tokens=TOKENS)["perplexity"].passed
    edit(copy, evaluation={"perplexity": {"protocol": {}, "sparse": value * 1.01}})
    assert failed(outcome(copy, tokens=TOKENS)) == {"perplexity"}


def width(model: Any, tokens: Tensor, protocol: dict[str, Any]) -> float:
    """A model's bytes per weight in the place of its perplexity."""
    return float(next(model.parameters()).element_size())


@pytest.mark.parametrize("storage", ["dense", "packed"])
@pytest.mark.parametrize(("compute", "found"), [("float32", 4), ("bfloat16", 2), (None, 2)])
def test_perplexity_is_measured_in_the_dtype_that_it_was_measured_in(
    compute: str | None, found: int, storage: str, result: Path, tmp_path: Path
) -> None:
    """The weights are bf16; a run computes in what its machine is fast at."""
    path = Path(shutil.copytree(result, tmp_path / "copy"))
    edit(path, evaluation={"perplexity": {"sparse": float(found)} | ({"compute": compute} if compute else {})})
    path = path if storage == "dense" else convert(path, tmp_path / "packed", "packed")
    checks = outcome(path, tokens=TOKENS, measure=f"{__name__}:width")
    assert not failed(checks), checks


def test_what_a_generation_config_asks_for_is_put_aside(copy: Path) -> None:
    own = {"num_beams": 3, "max_time": 0.0, "stop_strings": ["a"]}
    (copy / "generation_config.json").write_text(json.dumps(own))
    assert outcome(copy)["generates"].passed


def constant(model: Any, tokens: Tensor, protocol: dict[str, Any]) -> float:
    return float(protocol["value"]) if hasattr(model, "generate") and tokens.shape == (2, 12) else math.nan


def test_perplexity_by_a_named_function(copy: Path) -> None:
    edit(copy, evaluation={"perplexity": {"protocol": {"value": 42}, "sparse": 42.0}})
    name = f"{__name__}:constant"
    assert outcome(copy, tokens=TOKENS, measure=name)["perplexity"].detail == "42.0000, recorded is 42.0000"
    assert failed(outcome(copy, tokens=TOKENS, measure="no_such_module:x")) == {"perplexity"}


def test_perplexity_by_hand() -> None:
    """Uniform logits over V tokens give V."""

    class Uniform:
        def __call__(self, row: Tensor) -> Any:
            return type("Out", (), {"logits": torch.zeros(1, row.shape[1], 17)})

    assert math.isclose(perplexity(Uniform(), TOKENS % 17, {}), 17, rel_tol=1e-6)


def test_what_cannot_be_opened_ends_early(copy: Path) -> None:
    (copy / "model.safetensors").write_bytes(b"")
    checks = run_checks(copy)
    assert [(check.name, check.passed) for check in checks] == [("lowdim.json", True), ("opens", False)]
    (copy / "lowdim.json").unlink()
    assert run_checks(copy)[0].detail.startswith("lowdim.json is missing")


def test_a_record_that_leads_elsewhere(copy: Path) -> None:
    record = json.loads((copy / "lowdim.json").read_text())
    record["hashes"]["files"]["../secret"] = "00"
    edit(copy, hashes=record["hashes"])
    assert "refusing '../secret'" in outcome(copy)["files"].detail


def test_a_dead_process_is_a_failed_check(result: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    report = verify(result)
    assert not report.passed
    assert "died (exit code 1)" in report.checks[0].detail


def test_what_was_not_compared_does_not_fail() -> None:
    assert VerifyReport("x", (Check("a", True, ""), Check("b", None, ""))).passed
    assert not VerifyReport("x", (Check("a", True, ""), Check("b", False, ""))).passed

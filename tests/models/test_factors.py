"""Factorised models on disk: opened as two thin matrices per layer, by every reader, and made dense again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.results import saved
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import lowdim
from lowdim.cli.app import app
from lowdim.core.errors import CheckpointError, LowdimError
from lowdim.data.batch import Batch
from lowdim.evaluate.inspect import inspect
from lowdim.infer.bench import models as contestants
from lowdim.infer.bench.result import Contestant
from lowdim.infer.bench.settings import Settings
from lowdim.infer.decode.open import open_backend
from lowdim.infer.sparse.accelerate import accelerate
from lowdim.infer.sparse.linear import SparseLinear
from lowdim.models.disk import manifest
from lowdim.models.disk.checkpoint import Checkpoint
from lowdim.models.disk.checks import run_checks
from lowdim.models.disk.convert import convert
from lowdim.models.disk.factors import Factors
from lowdim.models.disk.rewrite import rewrite
from lowdim.models.disk.source import resolve
from lowdim.models.load import load, quiet
from lowdim.models.quantize import linear_weights
from lowdim.models.save import save_factors
from lowdim.models.walk.opened import open_model
from lowdim.nn.lowrank import LowRankLinear, factorise_, factors_of

TOKENS = torch.arange(12)[None] + 3
RANK = 5


@torch.no_grad()
def logits(model: Any) -> Tensor:
    found: Tensor = model(TOKENS).logits
    return found.float()


def names(path: Path) -> list[str]:
    """Half of the linear layers of the blocks."""
    return list(linear_weights(Checkpoint(path)))[::2]


@pytest.fixture(scope="module", params=["llama", "qwen2"])  # without and with biases
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    home = tmp_path_factory.mktemp("factors")
    dense = saved(home / "dense", request.param)
    model = load(dense, torch.float32)
    chosen = {name.removesuffix(".weight"): RANK for name in names(dense)}
    factorise_(model, chosen)
    return {"dense": dense, "model": model, "ranks": chosen, "out": save_factors(model, home / "out")}


def test_it_opens_as_it_was_saved(written):
    model = lowdim.load(written["out"])
    held = {name: m.rank for name, m in model.named_modules() if isinstance(m, LowRankLinear)}
    assert held == written["ranks"]
    assert torch.equal(logits(model), logits(written["model"]))
    assert manifest.read(written["out"]).factors == {f"{name}.weight": RANK for name in held}
    size = sum(p.numel() for p in model.parameters())
    assert size == sum(p.numel() for p in written["model"].parameters())
    assert size < sum(p.numel() for p in load(written["dense"]).parameters())


def test_stock_transformers_finds_no_weights_and_the_model_is_not_saved_as_a_stock_one(written, tmp_path):
    with pytest.raises(OSError, match=r"model\.safetensors"), quiet():
        AutoModelForCausalLM.from_pretrained(written["out"])
    for model in (written["model"], lowdim.load(written["out"])):
        with pytest.raises(LowdimError, match="save_factors"):
            model.save_pretrained(tmp_path / "stock")
    with pytest.raises(LowdimError, match=r"no layer of .* is factorised"):
        save_factors(load(written["dense"]), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_it_is_made_a_dense_stock_model_with_the_same_logits(written, tmp_path):
    stock = convert(written["out"], tmp_path / "stock", "dense")
    with quiet():
        model = AutoModelForCausalLM.from_pretrained(stock)
    assert not any(isinstance(m, LowRankLinear) for m in model.modules())
    assert torch.allclose(logits(model), logits(written["model"]), atol=1e-5)
    assert manifest.read(stock).factors is None and manifest.read(stock).storage == "dense"
    assert all(check.passed is not False for check in run_checks(stock))


def test_it_is_verified_and_a_wrong_rank_is_seen(written, tmp_path):
    checks = {check.name: check for check in run_checks(written["out"])}
    assert all(check.passed is not False for check in checks.values()), checks
    assert f"{len(written['ranks'])} weights are products" in checks["factors"].detail
    record = manifest.read(written["out"])
    assert record.factors is not None
    record.factors[next(iter(record.factors))] += 1
    other = tmp_path / "other"
    other.mkdir()
    for file in written["out"].iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    (other / manifest.FILE).write_text(manifest.to_text(record))
    assert {c.name for c in run_checks(other) if c.passed is False} == {"factors"}


def test_inspection_reads_ranks_and_weights_back(written):
    found = inspect(written["out"], calibration=None, alpha=False)
    assert {layer.name: layer.rank for layer in found.layers if layer.rank} == written["ranks"]
    assert found.stored == sum(p.numel() for p in written["model"].parameters())
    assert f"of rank {RANK} to {RANK}: {found.stored:,} weights are stored" in found.render()
    assert found.to_dict()["stored"] == found.stored
    assert "rank" not in inspect(written["dense"], calibration=None, alpha=False).render()


def test_walks_and_evaluation_compute_with_the_factors(written):
    opened = open_model(str(written["out"]), compute="float32", placed=True)
    assert any(isinstance(m, LowRankLinear) for m in opened.stream.model.modules())
    with torch.no_grad():
        [found] = opened.stream.forward([Batch(TOKENS)])
    assert torch.allclose(found.float(), logits(written["model"]), atol=1e-4)
    products = open_model(str(written["out"]))
    assert products.stream.skeleton is not None and products.stored_numel < products.stream.numel()


@pytest.mark.parametrize("dtype", ["int8", "bf16", None])
def test_the_runtime_has_two_layers_for_each(written, dtype):
    model = lowdim.load(written["out"], dtype=dtype)
    if dtype != "int8":
        rows = accelerate(model, dtype or "fp32")
        assert {row.name.rpartition(".")[0] for row in rows if row.name.endswith((".a", ".b"))} == {*written["ranks"]}
    for name in written["ranks"]:
        pair = model.get_submodule(name)
        assert isinstance(pair, nn.Sequential) and all(isinstance(part, SparseLinear) for part in pair)
    near = {"int8": 0.05, "bf16": 0.02, None: 1e-5}[dtype]
    wanted = logits(written["model"])
    assert float((logits(model) - wanted).norm() / wanted.norm()) < near
    opened = open_backend(model)
    assert opened.name == "transformers" and "is a Sequential, not a Linear" in opened.reason


def test_bench_counts_the_bytes_of_the_factors(written):
    base = contestants.loaded_base(Settings(model=str(written["out"]), dtypes=("bf16",)))
    thin = [product for product in contestants.products(base) if RANK in product.weight.shape]
    assert {name.rpartition("/")[2] for product in thin for name in product.names} == {"a", "b"}
    dense = contestants.loaded_base(Settings(model=str(written["dense"]), dtypes=("bf16",)))
    for who in (Contestant("torch", "bf16"), Contestant("lowdim", "bf16")):  # in one dtype
        sizes = [contestants.bytes_per_token(contestants.build(each, who)) for each in (base, dense)]
        assert sizes[0] < sizes[1]


def test_commands_take_it_or_refuse_it_by_name(written, tmp_path):
    run = CliRunner().invoke
    out = str(written["out"])
    done = run(app, ["inspect", out, "--calibration", "none", "--no-alpha", "--json", str(tmp_path / "found.json")])
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "found.json").read_text())
    assert sum("rank" in layer for layer in found["layers"].values()) == len(written["ranks"])
    done = run(app, ["convert", out, str(tmp_path / "stock"), "--storage", "dense"])
    assert done.exit_code == 0, done.output
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "a", "answer": "b"}\n')
    done = run(app, ["finetune", out, str(tmp_path / "tuned"), "--data", str(rows)])
    assert done.exit_code != 0 and "has layers of two factors" in " ".join(done.output.split())


def test_a_weight_on_disk_is_rewritten_as_factors_and_back(written, tmp_path):
    source = resolve(str(written["dense"]))
    name = names(written["dense"])[0]
    weight = Checkpoint(source.path).read(name)
    made = Factors(*(part.to(weight.dtype) for part in factors_of(weight, 3)))
    out = rewrite(source, tmp_path / "out", {name: made})
    found = Checkpoint(out)
    assert found.ranks == {name: 3} == manifest.read(out).factors
    assert torch.equal(found.read(name), made.weight())
    assert found.stored_bytes(name) == made.nbytes and found.info(name).shape == tuple(weight.shape)
    back = rewrite(resolve(str(out)), tmp_path / "back", {name: weight})
    assert Checkpoint(back).ranks == {} and torch.equal(Checkpoint(back).read(name), weight)
    assert manifest.read(back).factors is None


def test_factors_that_do_not_fit_are_refused(written, tmp_path):
    with pytest.raises(CheckpointError, match=r"factors must be \[out, r\] and \[r, in\]"):
        Factors(torch.zeros(4, 2), torch.zeros(3, 4))
    source = resolve(str(written["dense"]))
    embedding = next(name for name in Checkpoint(source.path).names() if "embed" in name)
    thin = Factors(*factors_of(Checkpoint(source.path).read(embedding), 2))
    out = rewrite(source, tmp_path / "out", {embedding: thin})
    with pytest.raises(CheckpointError, match="is the weight of no linear layer"):
        lowdim.load(out)

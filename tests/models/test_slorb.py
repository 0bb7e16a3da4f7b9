"""A model with SLoRB on disk: every reader of ours computes with it, and stock Transformers finds no weights."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.results import pruned
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

import lowdim
from lowdim.core.errors import CheckpointError, LowdimError
from lowdim.data.batch import Batch
from lowdim.infer.decode.open import open_backend
from lowdim.infer.sparse.accelerate import accelerate
from lowdim.infer.sparse.linear import SparseLinear
from lowdim.models.disk import manifest
from lowdim.models.disk.checks import run_checks
from lowdim.models.disk.convert import convert
from lowdim.models.disk.writer import Writer
from lowdim.models.load import load, quiet
from lowdim.models.structure.layers import find_layers
from lowdim.models.walk.opened import open_model
from lowdim.nn.slorb import add_slorb, detach, slorb_of
from lowdim.runs.lock import OutputError

K = 8
TOKENS = torch.arange(12)[None] + 3


@torch.no_grad()
def logits(model: Any) -> Tensor:
    found: Tensor = model(TOKENS).logits
    return found


def boosted(model: Any, trains_p: bool = True) -> list[str]:
    """Put a SLoRB that matters beside half of the layers of each block."""
    layers = [(n, m) for n, m in find_layers(model)[0] if re.search(r"\.\d+\.", n)][::2]
    masks = {name: m.weight != 0 for name, m in layers}
    turned = {name for name, m in layers if isinstance(m, Conv1D)}
    parameters = add_slorb(model, masks, K, trains_p=trains_p, transposed=turned)
    source = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=source))
    return [name for name, _ in layers]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    home = tmp_path_factory.mktemp("slorb")
    dense = pruned(home / "dense", request.param)
    model = load(dense)
    before = logits(model)
    names = boosted(model)
    with_it = logits(model)
    assert not torch.allclose(before, with_it, atol=0.1)
    with pytest.raises(LowdimError, match=r"cannot be saved as a stock one.*beside="):
        model.save_pretrained(home / "no")
    tensors = {name: tensor.clone() for name, tensor in detach(model).items()}
    assert torch.equal(logits(model), before)
    out = convert(dense, home / "packed", "packed", beside=tensors)
    return {"out": out, "dense": dense, "logits": with_it, "names": names, "tensors": tensors, "kind": request.param}


def test_stock_transformers_finds_nothing(written: dict[str, Any]) -> None:
    with quiet(), pytest.raises(OSError, match="no file named"):
        AutoModelForCausalLM.from_pretrained(written["out"])


def test_it_is_there_again(written: dict[str, Any]) -> None:
    model = load(written["out"])
    assert list(slorb_of(model)) == written["names"]
    assert torch.equal(logits(model), written["logits"])
    with pytest.raises(LowdimError, match="cannot be saved"):
        model.save_pretrained("no")
    assert detach(model).keys() == written["tensors"].keys()


def test_sparse_layers_have_it_too(written: dict[str, Any]) -> None:
    model = lowdim.load(written["out"])
    assert all(isinstance(model.get_submodule(name), SparseLinear) for name in slorb_of(model))
    assert list(slorb_of(model)) == written["names"]
    torch.testing.assert_close(logits(model), written["logits"], atol=0.05, rtol=0.05)
    opened = open_backend(model)
    assert opened.name == "transformers"
    assert written["kind"] != "llama" or "forward hooks" in opened.reason


def test_accelerating_leaves_its_layers_alone(written: dict[str, Any]) -> None:
    model = load(written["out"])
    rows = {row.name: row.note for row in accelerate(model)}
    assert {name for name, note in rows.items() if "forward hooks" in note} == set(written["names"])
    torch.testing.assert_close(logits(model), written["logits"], atol=0.05, rtol=0.05)


def test_a_streamed_model_computes_with_it(written: dict[str, Any]) -> None:
    with torch.no_grad():
        (found,) = open_model(written["out"], compute="bfloat16").stream.forward([Batch(TOKENS)])
    torch.testing.assert_close(found, written["logits"], atol=0.05, rtol=0.05)


def test_the_record_says_so_and_holds(written: dict[str, Any]) -> None:
    said = manifest.read(written["out"]).slorb
    assert said is not None
    assert said.layers == len(written["names"])
    assert said.nbytes == sum(t.nbytes for t in written["tensors"].values()) == 2 * said.multiply_adds
    assert said.trains_p
    assert all(check.passed is not False for check in run_checks(written["out"]))


def test_what_would_lose_it_is_refused(written: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"slorb\.[sp] is part of what the model computes"):
        convert(written["out"], tmp_path / "dense", "dense")
    with pytest.raises(LowdimError, match="has a SLoRB beside it"):
        lowdim.plan(written["out"], lowdim.Recipe(sparsity=0.8))
    tensors = written["tensors"]
    with Writer(tmp_path / "out") as writer, pytest.raises(OutputError, match=r"passed over in model\.safetensors"):
        writer.write_shard("model.safetensors", tensors)


@pytest.mark.parametrize("damage", ["name", "shape", "p", "lone p"])
def test_a_tensor_that_belongs_nowhere_is_named(written: dict[str, Any], tmp_path: Path, damage: str) -> None:
    tensors = dict(written["tensors"])
    s, p = (next(name for name in tensors if name.endswith(end)) for end in (".s", ".p"))
    if damage == "name":
        tensors[s.replace(".0.", ".9.")] = tensors[s]
    elif damage == "lone p":
        del tensors[s]
    else:
        tensors[s if damage == "shape" else p] = tensors[s if damage == "shape" else p][:-1].contiguous()
    out = convert(written["dense"], tmp_path / "other", "packed", beside=tensors)
    words = "stands beside no linear layer" if damage == "name" else re.escape(f"the SLoRB of '{s[:-8]}' has S")
    for read in (load, lowdim.load, open_model):
        with pytest.raises(CheckpointError, match=words):
            read(out)

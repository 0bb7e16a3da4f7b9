"""Layers in the form of eight or four values for every 16 columns."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from tests.infer.llamas import tiny
from tests.infer.sparse.test_load import logits, packed_dir, sparse_layers
from torch import Tensor, nn

import lowdim
from lowdim.core import native
from lowdim.core.errors import CheckpointError
from lowdim.core.packing.records import KEPT, RECORD
from lowdim.core.pattern.nm import NM
from lowdim.infer.decode.native_backend import NativeBackend
from lowdim.infer.sparse.linear import SparseLinear
from lowdim.infer.sparse.matrix import Matrix

pytestmark = pytest.mark.skipif(not native.runtime_info().levels, reason="installed without compiled kernels")
KINDS = sorted(RECORD)


def half(rows: int, cols: int, pattern: tuple[int, int] = (8, 16)) -> Tensor:
    weight = torch.randn(rows, cols, generator=torch.Generator().manual_seed(rows)).bfloat16()
    return weight * NM(*pattern).mask(weight.float().abs(), rows * cols * pattern[0] // pattern[1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pattern", [(8, 16), (4, 8), (2, 4), (4, 16), (2, 8), (1, 4)])
def test_the_same_numbers_there_and_back(level: str, kind: str, pattern: tuple[int, int]) -> None:
    packed = Matrix.from_dense(half(37, 208, pattern), kind, bias=torch.randn(37))
    records = packed.in_records()
    if level == "torch":
        assert records is None
        return
    assert records is not None and records.kernel == f"{16 * pattern[0] // pattern[1]}:16 {kind}, {level}"
    assert torch.equal(records.unpack(), packed.unpack()) and records.sparsity == packed.sparsity
    back = records.masked().tensors()
    assert all(torch.equal(back[name], tensor) for name, tensor in packed.tensors().items())
    x = torch.randn(30, 208)
    for tokens in (1, 5, 30):  # in the kernels, and in torch
        wanted = packed.linear(x[:tokens])
        assert (records.linear(x[:tokens]) - wanted).abs().max() < 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_mask_the_numbers_are_the_same(level: str, kind: str) -> None:
    packed = Matrix.from_dense(half(9, 208), kind)
    dense = packed.dense()
    assert dense.form == "dense" and torch.equal(dense.unpack(), packed.unpack())
    assert dense.kind == ("int8" if kind == "int4" else kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kept", KEPT)
def test_plain_torch_computes_it_too(kind: str, kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    records, x = Matrix.from_dense(half(9, 208, (kept, 16)), kind).in_records(), torch.randn(3, 208)
    assert records is not None and records.kept == kept
    wanted, whole = records.linear(x), records.unpack(3, 8)
    monkeypatch.setattr(native, "_find", lambda: (None, "it was not compiled"))
    assert (records.linear(x) - wanted).abs().max() < 1e-5 * wanted.abs().max()
    assert torch.equal(records.unpack(3, 8), whole)


def test_what_does_not_fit() -> None:
    weight = half(4, 64)
    weight[3, 63 - int((weight[3].flip(0) == 0).float().argmax())] = 1
    assert Matrix.from_dense(weight, "int8").in_records() is None
    assert Matrix.from_dense(half(4, 64), "fp32").in_records() is None
    fewer = half(4, 64)
    fewer[0, int(fewer[0].abs().argmax())] = 0
    assert Matrix.from_dense(fewer, "int8").in_records() is not None
    assert Matrix.from_dense(fewer, "int4").in_records() is None


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_dict_holds_what_a_file_would(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = Matrix.from_dense(half(8, 64), kind)
    records = packed.in_records()
    assert records is not None
    layer, x = SparseLinear(records), torch.randn(2, 64)
    held = layer.state_dict()
    assert held.keys() == SparseLinear(packed).state_dict().keys()
    assert torch.equal(held["values"], packed.values)
    again = SparseLinear(records)
    again.load_state_dict(held)
    assert again.kernel == layer.kernel and torch.equal(again(x), layer(x))
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))
    other = Matrix.from_dense(half(8, 64).flip(0), kind)  # and one that does not fit
    scattered = Matrix.from_dense(torch.ones(8, 64) * (torch.arange(64) < 32), kind)
    for matrix, form in ((other, "8:16"), (scattered, "packed")):
        again.load_state_dict(SparseLinear(matrix).state_dict())
        assert again.matrix.form == form
        assert (again(x) - matrix.linear(x)).abs().max() < 1e-4


def test_tensors_that_are_not_what_they_should_be() -> None:
    records = Matrix.from_dense(half(4, 64), "int8").in_records()
    assert records is not None and records.scales is not None
    parts = {"values": records.values, "scales": records.scales}
    spoiled = records.values.clone()
    spoiled[0, 0, 0, :2] = 0
    for change, text in (
        ({"values": records.values[:1]}, "values must be"),
        ({"scales": records.scales.float()}, "scales must be"),
        ({"table": torch.zeros(16, dtype=torch.int8)}, "an N:M int8 matrix has"),
        ({"values": spoiled}, "the columns of the values do not ascend"),
    ):
        with pytest.raises(CheckpointError, match=text):
            Matrix.from_stored("int8", (4, 64), parts | change)
    with pytest.raises(CheckpointError, match="cannot hold 8 values"):
        Matrix.from_stored("fp32", (4, 64), parts)


@pytest.mark.parametrize("form", ["8:16", "4:16", "dense"])
@pytest.mark.parametrize("dtype", [None, "int8", "int4"])
def test_a_packed_directory_in_every_form(
    form: str, dtype: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.models import results

    def pruned_nm(weight: Tensor, *_: object) -> Tensor:
        kept = 4 if form == "4:16" else 8
        return weight.masked_fill(~NM(kept, 16).mask(weight.float().abs(), weight.numel() * kept // 16), 0)  # no -0.0

    monkeypatch.setattr(results, "holed", pruned_nm)
    path = packed_dir(tmp_path)
    wanted = logits(lowdim.load(path, dtype))
    monkeypatch.setenv("LOWDIM_FORM", form)
    model = lowdim.load(path, dtype)
    forms = {layer.matrix.form for name, layer in sparse_layers(model).items() if name != "lm_head"}
    assert forms == {form}
    limit = 0.5 if (form, dtype) == ("dense", "int4") else 0.02  # which is rounded anew
    assert (logits(model).float() - wanted.float()).abs().max() < limit * wanted.float().abs().max()


@pytest.mark.parametrize("kind", KINDS)
def test_the_native_engine_steps_with_it(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {}
    for form in ("packed", "8:16"):
        monkeypatch.setenv("LOWDIM_FORM", form)
        model = tiny("llama", hidden_size=64, intermediate_size=160)
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, nn.Linear) and module.weight.shape[1] % 16 == 0 and module is not model.lm_head:
                    module.weight.copy_(half(*module.weight.shape).float())
        rows = lowdim.accelerate(model, kind)
        assert sum(row.kernel.startswith(form) for row in rows) == 14
        backend = NativeBackend(model, slots=4)
        slots = [backend.open() for _ in range(3)]
        for slot in slots:
            backend.prefill(slot, [5])
        together = backend.step(slots, [1, 2, 3]).copy()
        alone = backend.open()
        backend.prefill(alone, [5])
        assert (backend.step([alone], [2])[0] == together[1]).all()
        found[form] = torch.from_numpy(together)
    assert (found["8:16"] - found["packed"]).abs().max() < 1e-3 * found["packed"].abs().max()

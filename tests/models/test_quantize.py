from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.models.results import pruned, saved

from lowdim.core.errors import CheckpointError, LowdimError, NumericalError
from lowdim.core.quantize import Grid, Quantized, decode, encode
from lowdim.models import load as stock
from lowdim.models.disk import manifest
from lowdim.models.disk.checkpoint import Checkpoint
from lowdim.models.disk.checks import run_checks
from lowdim.models.disk.convert import convert
from lowdim.models.disk.packed import Form, bits_of, kept
from lowdim.models.quantize import linear_weights, quantize

TOKENS = torch.arange(12)[None] + 3


def digest(path: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(path.iterdir())}


def by_hand(weight: torch.Tensor, grid: Grid) -> torch.Tensor:
    """``level * scale`` of a matrix ``[out, in]``."""
    made = encode(weight, None, grid)
    return decode(made.levels, made.scales, grid).to(weight.dtype)


@pytest.mark.parametrize("grid", [Grid(8), Grid(4, 128), Grid(3)])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "mixtral"])
def test_every_linear_layer_of_the_blocks_and_nothing_else(tmp_path: Path, kind: str, grid: Grid) -> None:
    source = Checkpoint(saved(tmp_path / "model", kind))
    written = Checkpoint(quantize(source.path, tmp_path / "out", grid))
    assert (written.storage, written.names()) == ("packed", source.names())
    chosen = linear_weights(source)
    matrices = {n for n in source.names() if re.search(r"\.\d+\.", n) and len(source.info(n).shape) == 2}
    assert chosen.keys() == {name for name in matrices if not name.endswith(".gate.weight")}  # Mixtral's routers
    for name in source.names():
        weight, turned = source.read(name), kind == "gpt2"
        form = Form(tuple(weight.shape), weight.dtype, grid, turned, masked=False) if name in chosen else None
        assert written.form(name) == form
        if form is not None:
            matrix = weight.t() if turned else weight
            wanted = by_hand(matrix, grid)
            assert torch.equal(written.read(name), wanted.t() if turned else wanted)
        else:
            assert torch.equal(bits_of(written.read(name)), bits_of(weight))


@pytest.mark.parametrize("bits", [8, 4, 3])
def test_the_record_verifies_and_converts_to_dense(tmp_path: Path, bits: int) -> None:
    model = saved(tmp_path / "model", "llama")
    out = quantize(model, tmp_path / "out", Grid(bits))
    record = manifest.read(out)
    assert record.recipe == {"quantize": f"int{bits}", "quantize_group": 64, "storage": "packed"}
    assert record.model.files == Checkpoint(model).fingerprint()
    assert record.packed is not None
    assert record.packed.format == "3"
    assert all(said["dense"] for said in record.packed.quantized.values())
    assert not [check for check in run_checks(out) if check.passed is False]
    dense = convert(out, tmp_path / "dense", "dense")
    assert not [check for check in run_checks(dense) if check.passed is False]
    with torch.inference_mode():
        assert torch.equal(stock.load(dense)(TOKENS).logits, stock.load(out)(TOKENS).logits)
    assert digest(quantize(model, tmp_path / "again", Grid(bits))) == digest(out)


def test_a_damaged_code_is_found(tmp_path: Path) -> None:
    out = quantize(saved(tmp_path / "model", "llama"), tmp_path / "out", Grid(8))
    with (out / "packed.safetensors").open("r+b") as file:
        stored = Checkpoint(out)._stored["model.layers.0.mlp.up_proj.values"]
        file.seek(stored.start)
        file.write(b"\x80")  # -128
    failed = {check.name: check.detail for check in run_checks(out) if check.passed is False}
    assert {"files", "tensors"} <= failed.keys()
    assert "up_proj.weight' is damaged: a code is -128" in failed["tensors"]


def test_codes_that_were_trained_are_written_as_they_are(tmp_path: Path) -> None:
    source = Checkpoint(saved(tmp_path / "model", "llama"))
    name = "model.layers.1.mlp.down_proj.weight"
    rows, cols = source.info(name).shape
    generator = torch.Generator().manual_seed(0)
    levels = torch.tensor([-90, -40, -7, 0, 3, 9, 41, 120], dtype=torch.int8)
    codes = Quantized(
        levels[torch.randint(0, 8, (rows, cols), generator=generator)], torch.full((rows, 1), 2.0**-9).bfloat16(), None
    )
    written = Checkpoint(quantize(source.path, tmp_path / "out", Grid(3), {name: codes}))
    made = written.read_packed(name)
    assert made.table is not None
    assert made.table.tolist() == levels.tolist()
    assert torch.equal(made.levels(), codes.levels)
    assert torch.equal(written.read(name).float(), codes.levels.float() * 2.0**-9)
    other = "model.layers.0.mlp.down_proj.weight"
    assert torch.equal(written.read(other), by_hand(source.read(other), Grid(3)))


@pytest.mark.parametrize("storage", ["dense", "packed"])
def test_a_pruned_model_keeps_its_record(tmp_path: Path, storage: str) -> None:
    dense = pruned(tmp_path / "dense")
    source = dense if storage == "dense" else convert(dense, tmp_path / "packed", "packed")
    out = quantize(source, tmp_path / "out", Grid(3))
    before, after = manifest.read(dense), manifest.read(out)
    assert after.layers.keys() == before.layers.keys()
    assert after.sparsity is not None and before.sparsity is not None
    assert after.sparsity.prunable > before.sparsity.prunable  # small weights became zero, and the record says so
    assert not [check for check in run_checks(out) if check.passed is False]
    for name in linear_weights(Checkpoint(dense)):
        was, now = kept(Checkpoint(dense).read(name)), kept(Checkpoint(out).read(name))
        assert not (now & ~was).any()


def test_refusals_come_before_anything_is_written(tmp_path: Path) -> None:
    model = saved(tmp_path / "model", "llama")
    out, name = tmp_path / "out", "model.layers.0.mlp.up_proj.weight"
    rows, cols = Checkpoint(model).info(name).shape
    levels, scales = torch.zeros(rows, cols, dtype=torch.int8), torch.ones(rows, 1).bfloat16()
    for codes, words in (
        ({"lm_head.weight": Quantized(levels, scales, None)}, "no linear layer of a block"),
        ({name: Quantized(levels[1:], scales, None)}, "levels of .* must be int8"),
        ({name: Quantized(levels, scales[1:], None)}, "scales must be bfloat16"),
        ({name: Quantized(torch.arange(rows * cols).reshape(rows, cols).to(torch.int8), scales, None)}, "at most 16"),
    ):
        with pytest.raises(CheckpointError, match=words):
            quantize(model, out, Grid(4), codes)
    with pytest.raises(LowdimError, match="group must be 64 or 128"):
        quantize(model, out, Grid(4, 32))
    rounded = quantize(model, tmp_path / "rounded", Grid(8))
    with pytest.raises(CheckpointError, match="rounded to int8 already"):
        quantize(rounded, out, Grid(4))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "rounded"]


def test_a_weight_that_is_not_a_number_stops_it(tmp_path: Path) -> None:
    model = saved(tmp_path / "model", "llama")
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = torch.nan
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NumericalError, match=r"layers\.1\.mlp\.up_proj\.weight' cannot be rounded"):
        quantize(model, tmp_path / "out", Grid(8))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]

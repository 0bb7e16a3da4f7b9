from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.models.results import holed, pruned

from lowdim.core.errors import CheckpointError, LowdimError
from lowdim.models.disk import manifest
from lowdim.models.disk.checkpoint import Checkpoint
from lowdim.models.disk.convert import convert
from lowdim.models.disk.packed import bits_of
from lowdim.models.disk.shard import read_header
from lowdim.runs.lock import OutputError


def digest(path: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(path.iterdir())}


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "mixtral"])
def test_there_and_back_is_the_same_directory(tmp_path: Path, kind: str, shards: int) -> None:
    dense = pruned(tmp_path / "dense", kind, shards=shards)
    packed = convert(dense, tmp_path / "packed", "packed")
    back = convert(packed, tmp_path / "back", "dense")
    assert digest(back) == digest(dense)
    a, b = Checkpoint(dense), Checkpoint(packed)
    assert a.names() == b.names()
    for name in a.names():
        assert a.info(name).shape == b.info(name).shape
        assert torch.equal(bits_of(a.read(name)), bits_of(b.read(name)))


def test_the_record_follows(tmp_path: Path) -> None:
    dense = pruned(tmp_path / "dense")
    packed = convert(dense, tmp_path / "packed", "packed")
    before, after = manifest.read(dense), manifest.read(packed)
    assert (after.storage, before.storage) == ("packed", "dense")
    assert after.packed is not None
    assert {name.removesuffix(".weight") for name in after.packed.weights} == set(before.layers)
    files = digest(packed)
    del files["lowdim.json"]
    assert after.hashes.files == files
    assert after.hashes.masks == before.hashes.masks
    assert Checkpoint(packed).size_bytes < Checkpoint(dense).size_bytes


def test_a_plain_directory_packs_what_is_worth_it(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    weight = torch.randn(8, 128)
    tensors = {
        "model.layers.0.sparse.weight": holed(weight, 0.5, 0),
        "model.layers.0.hardly.weight": holed(weight, 0.02, 1),
        "model.layers.0.norm.weight": torch.zeros(128),
        "model.layers.0.table": torch.zeros(8, 128, dtype=torch.int32),
        "lm_head.weight": holed(weight, 0.9, 2),
    }
    save_file(tensors, tmp_path / "plain" / "model.safetensors", metadata={"format": "pt", "who": "me"})
    packed = Checkpoint(convert(tmp_path / "plain", tmp_path / "packed", "packed"))
    assert [name for name in packed.names() if packed.is_packed(name)] == ["model.layers.0.sparse.weight"]
    assert packed.metadata == {"format": "pt", "who": "me"}
    assert not manifest.exists(packed.path)
    back = Checkpoint(convert(packed.path, tmp_path / "back", "dense"))
    assert back.metadata == {"format": "pt", "who": "me"}
    for name, tensor in tensors.items():
        assert torch.equal(back.read(name), tensor)
        assert back.info(name).dtype == tensor.dtype


def test_what_is_not_sparse_is_not_packed(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    save_file({"l.0.weight": torch.ones(8, 128)}, tmp_path / "plain" / "model.safetensors")
    with pytest.raises(CheckpointError, match="too few zeros"):
        convert(tmp_path / "plain", tmp_path / "packed", "packed")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plain"]


def test_refusals(tmp_path: Path) -> None:
    dense = pruned(tmp_path / "dense")
    with pytest.raises(LowdimError, match="Did you mean 'packed'"):
        convert(dense, tmp_path / "x", "pack")
    with pytest.raises(CheckpointError, match="stored dense already"):
        convert(dense, tmp_path / "x", "dense")
    convert(dense, tmp_path / "x", "packed")
    with pytest.raises(OutputError, match="exists and is not empty"):
        convert(dense, tmp_path / "x", "packed")
    before = digest(tmp_path / "x")
    convert(dense, tmp_path / "x", "packed", overwrite=True)
    assert digest(tmp_path / "x") == before


def test_in_place(tmp_path: Path) -> None:
    path = pruned(tmp_path / "m")
    before = digest(path)
    convert(path, path, "packed", overwrite=True)
    assert Checkpoint(path).storage == "packed"
    convert(path, path, "dense", overwrite=True)
    assert digest(path) == before


def test_a_layer_the_record_invents(tmp_path: Path) -> None:
    dense = pruned(tmp_path / "dense")
    record = json.loads((dense / "lowdim.json").read_text())
    record["layers"]["model.layers.9.x"] = {"numel": 1, "nonzeros": 1, "sparsity": 0.0}
    (dense / "lowdim.json").write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match=r"lists the layer 'model\.layers\.9\.x'"):
        convert(dense, tmp_path / "x", "packed")


def test_a_damaged_packed_weight_stops_it(tmp_path: Path) -> None:
    packed = convert(pruned(tmp_path / "dense", shards=1), tmp_path / "packed", "packed")
    stored = Checkpoint(packed)
    file = packed / "packed.safetensors"
    mask = next(s for name, s in read_header(file).tensors.items() if name.endswith("up_proj.mask"))
    data = bytearray(file.read_bytes())
    data[mask.start] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"up_proj\.weight' is damaged"):
        convert(stored.path, tmp_path / "back", "dense")
    assert not (tmp_path / "back").exists()
    assert not (tmp_path / "back.partial").exists()

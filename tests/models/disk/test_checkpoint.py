from __future__ import annotations

import hashlib
import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lowdim.core.errors import CheckpointError
from lowdim.core.files import read_json
from lowdim.core.quantize import Grid, encode
from lowdim.models.disk.checkpoint import Checkpoint, TensorInfo
from lowdim.models.disk.files import companions
from lowdim.models.disk.packed import Form, Packed, pack, pack_levels
from lowdim.models.disk.packed_header import lay_out
from lowdim.models.disk.shard import write_file

ROUNDED = {"lowdim.packed": '{"x.weight":[2,2]}', "lowdim.format": "2"}
A, B = torch.arange(6.0).reshape(2, 3), torch.ones(4, dtype=torch.bfloat16)


def single(path: Path) -> Path:
    path.mkdir(exist_ok=True)
    save_file({"a": A, "b": B}, path / "model.safetensors", metadata={"format": "pt", "who": "me"})
    (path / "config.json").write_text("{}")
    return path


def sharded(path: Path, weight_map: object = None) -> Path:
    path.mkdir(exist_ok=True)
    save_file({"a": A}, path / "model-00001-of-00002.safetensors")
    save_file({"b": B}, path / "model-00002-of-00002.safetensors")
    default = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    index = {"metadata": {"total_size": 32}, "weight_map": default if weight_map is None else weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return path


def one_packed(path: Path, name: str = "packed.safetensors", **changes: Tensor) -> Path:
    path.mkdir(exist_ok=True)
    weight = torch.zeros(3, 70)
    weight[0, 1] = weight[2, 69] = 5.0
    tensors, metadata = lay_out({"l.0.weight": pack(weight), "norm": B})
    with (path / name).open("wb") as file:
        write_file(file, tensors | changes, {"format": "pt", **metadata})
    return path


def one_rounded(path: Path, bits: int, **changes: Tensor) -> tuple[Path, Packed]:
    path.mkdir(exist_ok=True)
    weight = torch.zeros(3, 70)
    weight[0, 1] = weight[2, 69] = 5.0
    weight[2, 0] = -1.3
    coded = encode(weight, weight != 0, Grid(bits))
    made = pack_levels(coded.levels, coded.scales, Form((3, 70), torch.bfloat16, Grid(bits)))
    tensors, metadata = lay_out({"l.0.weight": made, "norm": B})
    with (path / "packed.safetensors").open("wb") as file:
        write_file(file, tensors | changes, {"format": "pt", **metadata})
    return path, made


def test_single_file(tmp_path: Path) -> None:
    checkpoint = Checkpoint(single(tmp_path))
    assert checkpoint.names() == ["a", "b"]
    assert checkpoint.info("a") == TensorInfo(torch.float32, (2, 3), "model.safetensors")
    assert (checkpoint.info("a").numel, checkpoint.info("b").nbytes) == (6, 8)
    assert torch.equal(checkpoint.read("a"), A)
    assert checkpoint.read("b").dtype == torch.bfloat16
    assert checkpoint.metadata == {"format": "pt", "who": "me"}
    assert (checkpoint.files, checkpoint.storage) == (["model.safetensors"], "dense")
    assert checkpoint.size_bytes == (tmp_path / "model.safetensors").stat().st_size
    assert {name: tensor.shape for name, tensor in checkpoint} == {"a": (2, 3), "b": (4,)}


def test_reads_are_fresh_copies(tmp_path: Path) -> None:
    checkpoint = Checkpoint(single(tmp_path))
    checkpoint.read("a").zero_()
    assert torch.equal(checkpoint.read("a"), A)


def test_shards(tmp_path: Path) -> None:
    checkpoint = Checkpoint(sharded(tmp_path))
    assert checkpoint.names() == ["a", "b"]
    assert checkpoint.info("b").file == "model-00002-of-00002.safetensors"
    assert torch.equal(checkpoint.read("b"), B)
    assert checkpoint.files[0] == "model.safetensors.index.json"


def test_fingerprint_covers_weights_config_and_tokenizer(tmp_path: Path) -> None:
    sharded(tmp_path)
    for name in (
        "config.json",
        "tokenizer.json",
        "tokenizer.model",
        "vocab.json",
        "chat_template.jinja",
        "tekken.json",
        "preprocessor_config.json",
        "video_preprocessor_config.json",
        "LICENSE",
    ):
        (tmp_path / name).write_text(name)
    for name in ("README.md", "training_args.bin", "x.gguf"):
        (tmp_path / name).write_text(name)
    found = Checkpoint(tmp_path).fingerprint()
    others = [
        "LICENSE",
        "chat_template.jinja",
        "config.json",
        "preprocessor_config.json",
        "tekken.json",
        "tokenizer.json",
        "tokenizer.model",
        "video_preprocessor_config.json",
        "vocab.json",
    ]
    assert sorted(found) == sorted([*others, *Checkpoint(tmp_path).files])
    assert found["config.json"] == hashlib.sha256(b"config.json").hexdigest()


def test_unknown_tensor_is_suggested(tmp_path: Path) -> None:
    save_file({"model.norm.weight": B}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"Did you mean 'model\.norm\.weight'"):
        Checkpoint(tmp_path).read("model.norms.weight")


class TestPacked:
    def test_reads_as_dense(self, tmp_path: Path) -> None:
        checkpoint = Checkpoint(one_packed(tmp_path))
        assert checkpoint.storage == "packed"
        assert checkpoint.names() == ["l.0.weight", "norm"]
        assert checkpoint.info("l.0.weight") == TensorInfo(torch.float32, (3, 70), "packed.safetensors")
        weight = checkpoint.read("l.0.weight")
        assert (weight[0, 1], weight[2, 69], int(weight.count_nonzero())) == (5, 5, 2)
        assert checkpoint.is_packed("l.0.weight")
        assert not checkpoint.is_packed("norm")
        assert "l.0.mask" not in checkpoint
        assert checkpoint.metadata == {"format": "pt"}

    def test_gives_the_tensors_as_they_are_stored(self, tmp_path: Path) -> None:
        made = Checkpoint(one_packed(tmp_path)).read_packed("l.0.weight")
        assert made.mask.tolist() == [[2, 0], [0, 0], [0, 1 << 5]]
        assert made.values.tolist() == [5, 5]
        assert made.form == Checkpoint(tmp_path).form("l.0.weight") == Form((3, 70), torch.float32)
        assert Checkpoint(tmp_path).form("norm") is None
        with pytest.raises(CheckpointError, match="stored dense"):
            Checkpoint(tmp_path).read_packed("norm")

    @pytest.mark.parametrize("bits", [8, 4])
    def test_rounded_weights_read_in_the_models_dtype_and_write_back_the_same(self, tmp_path: Path, bits: int) -> None:
        path, made = one_rounded(tmp_path / "a", bits)
        checkpoint = Checkpoint(path)
        assert checkpoint.names() == ["l.0.weight", "norm"]
        assert checkpoint.info("l.0.weight") == TensorInfo(torch.bfloat16, (3, 70), "packed.safetensors")
        assert checkpoint.read("l.0.weight").dtype == torch.bfloat16
        assert torch.equal(checkpoint.read("l.0.weight"), made.weight())
        assert checkpoint.stored_bytes("l.0.weight") == made.nbytes
        again = checkpoint.read_packed("l.0.weight")
        tensors, metadata = lay_out({"l.0.weight": again, "norm": B})
        with (tmp_path / "again.safetensors").open("wb") as file:
            write_file(file, tensors, {"format": "pt", **metadata})
        assert (tmp_path / "again.safetensors").read_bytes() == (path / "packed.safetensors").read_bytes()

    @pytest.mark.parametrize("part", ["scales", "table"])
    def test_a_missing_part_is_named(self, tmp_path: Path, part: str) -> None:
        _, made = one_rounded(tmp_path / "a", 4)
        tensors, metadata = lay_out({"l.0.weight": made})
        del tensors[f"l.0.{part}"]
        with (tmp_path / "packed.safetensors").open("wb") as file:
            write_file(file, tensors, metadata)
        with pytest.raises(CheckpointError, match=f"'l.0.weight' lacks its {part}"):
            Checkpoint(tmp_path)

    def test_damaged_codes_name_the_weight(self, tmp_path: Path) -> None:
        path, made = one_rounded(tmp_path, 8, **{"l.0.values": torch.zeros(3, dtype=torch.int8)})
        assert len(made.values) == 3
        with pytest.raises(CheckpointError, match=r"'l\.0\.weight' is damaged: a code is 0"):
            Checkpoint(path).read("l.0.weight")

    def test_damaged_values_name_the_weight(self, tmp_path: Path) -> None:
        path = one_packed(tmp_path, **{"l.0.values": torch.ones(3)})
        with pytest.raises(CheckpointError, match=r"packed\.safetensors: 'l\.0\.weight' is damaged: .* 2 bits"):
            Checkpoint(path).read("l.0.weight")

    @pytest.mark.parametrize("mask", [torch.zeros(3, 1, dtype=torch.int64), torch.zeros(3, 2)])
    def test_a_mask_of_another_shape_is_refused_at_open(self, tmp_path: Path, mask: Tensor) -> None:
        with pytest.raises(CheckpointError, match="does not fit a weight of shape"):
            Checkpoint(one_packed(tmp_path, **{"l.0.mask": mask}))

    def test_rows_without_columns_cost_no_memory(self, tmp_path: Path) -> None:
        """A file of a few bytes can claim a million million rows of nothing."""
        header = {
            "__metadata__": {"lowdim.format": "1", "lowdim.packed": '{"x.weight":[1000000000000,0]}'},
            "x.mask": {"dtype": "I64", "shape": [10**12, 0], "data_offsets": [0, 0]},
            "x.values": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]},
        }
        text = json.dumps(header).encode()
        (tmp_path / "packed.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
        with pytest.raises(CheckpointError, match="does not fit a weight of shape"):
            Checkpoint(tmp_path).read("x.weight")

    def test_dense_and_packed_at_once_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="both dense and packed"):
            Checkpoint(one_packed(tmp_path, **{"l.0.weight": torch.zeros(3, 70)}))

    @pytest.mark.parametrize(
        ("metadata", "words"),
        [
            ({"lowdim.packed": "{}", "lowdim.format": "9"}, "Upgrade lowdim"),
            ({"lowdim.packed": "{}"}, "format None"),
            ({"lowdim.packed": "[1", "lowdim.format": "1"}, "header is damaged"),
            ({"lowdim.packed": '{"x": 3}', "lowdim.format": "1"}, "header is damaged"),
            ({"lowdim.packed": '{"x.weight": [2, 2]}', "lowdim.format": "1"}, "lacks its mask"),
            ({"lowdim.packed": '{"b": []}', "lowdim.format": "1"}, "lacks its mask"),
            ({"lowdim.packed": "{}", "lowdim.format": "2", "lowdim.quantized": "[]"}, "header is damaged"),
            (
                {"lowdim.packed": "{}", "lowdim.format": "2", "lowdim.quantized": '{"x":{}}'},
                "header is damaged",
            ),
            *(
                ({**ROUNDED, "lowdim.quantized": f'{{"x.weight":{said}}}'}, "header is damaged")
                for said in (
                    "3",
                    "{}",
                    '{"bits":3,"group":64,"dtype":"F32"}',
                    '{"bits":8,"group":7,"dtype":"F32"}',
                    '{"bits":8,"group":64,"dtype":"I8"}',
                    '{"bits":8,"group":64,"dtype":"F99"}',
                )
            ),
        ],
    )
    def test_header_faults(self, tmp_path: Path, metadata: dict[str, str], words: str) -> None:
        with (tmp_path / "packed.safetensors").open("wb") as file:
            write_file(file, {"a": A}, metadata)
        with pytest.raises(CheckpointError, match=words):
            Checkpoint(tmp_path)

    def test_two_models_in_one_directory_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="both a dense and a packed"):
            Checkpoint(single(one_packed(tmp_path)))


class TestFaults:
    def test_no_directory(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="no checkpoint directory"):
            Checkpoint(tmp_path / "gone")

    def test_an_unfinished_run_is_pointed_at(self, tmp_path: Path) -> None:
        (tmp_path / "out.partial").mkdir()
        with pytest.raises(CheckpointError, match="that run did not finish; resume it"):
            Checkpoint(tmp_path / "out")

    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"no model\.safetensors"):
            Checkpoint(tmp_path)

    def test_truncated_zero_byte_and_lost_shards(self, tmp_path: Path) -> None:
        shard = sharded(tmp_path) / "model-00002-of-00002.safetensors"
        content = shard.read_bytes()
        shard.write_bytes(content[:-1])
        with pytest.raises(CheckpointError, match=shard.name):
            Checkpoint(tmp_path)
        shard.write_bytes(b"")
        with pytest.raises(CheckpointError, match=rf"{shard.name} is empty \(0 bytes\)"):
            Checkpoint(tmp_path)
        shard.unlink()
        with pytest.raises(CheckpointError, match=f"lists '{shard.name}', which is missing"):
            Checkpoint(tmp_path)
        shard.write_bytes(content)
        Checkpoint(tmp_path)

    def test_tensor_in_two_shards(self, tmp_path: Path) -> None:
        sharded(tmp_path)
        save_file({"a": A, "b": B}, tmp_path / "model-00002-of-00002.safetensors")
        with pytest.raises(CheckpointError, match=r"'a' is in two files: model-00001.* and model-00002"):
            Checkpoint(tmp_path)

    def test_tensor_named_in_the_index_but_absent(self, tmp_path: Path) -> None:
        files = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
        sharded(tmp_path, files | {"c": "model-00001-of-00002.safetensors"})
        with pytest.raises(CheckpointError, match="says that 'c' is in model-00001-of-00002"):
            Checkpoint(tmp_path)

    def test_tensor_in_another_shard_than_the_index_says(self, tmp_path: Path) -> None:
        sharded(tmp_path, {"a": "model-00002-of-00002.safetensors", "b": "model-00001-of-00002.safetensors"})
        with pytest.raises(CheckpointError, match="'a' is in model-00001-of-00002"):
            Checkpoint(tmp_path)

    @pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "sub/x.safetensors", "..", "a\\b", ""])
    def test_index_that_leads_elsewhere(self, tmp_path: Path, name: str) -> None:
        path = sharded(tmp_path / "m", {"a": name, "b": "model-00002-of-00002.safetensors"})
        save_file({"a": A}, tmp_path / "x.safetensors")
        with pytest.raises(CheckpointError, match="refusing"):
            Checkpoint(path)

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            (b"{", "not valid JSON"),
            (b"\xff\xfe{}", "not valid JSON"),
            (b"[" * 100_000, "not valid JSON"),
            (b"[]", "must hold a JSON object"),
            (b"{}", "no 'weight_map'"),
            (b'{"weight_map": {}}', "no 'weight_map'"),
            (b'{"weight_map": ["a"]}', "no 'weight_map'"),
            (b'{"weight_map": {"a": 1}}', "no 'weight_map'"),
        ],
    )
    def test_malformed_index(self, tmp_path: Path, text: bytes, words: str) -> None:
        sharded(tmp_path)
        (tmp_path / "model.safetensors.index.json").write_bytes(text)
        with pytest.raises(CheckpointError, match=words) as caught:
            Checkpoint(tmp_path)
        assert "model.safetensors.index.json" in str(caught.value)

    def test_adapter(self, tmp_path: Path) -> None:
        save_file({"a": A}, tmp_path / "adapter_model.safetensors")
        with pytest.raises(CheckpointError, match=r"PEFT adapter.* Merge it first"):
            Checkpoint(tmp_path)


class TestLinks:
    def test_out_of_the_directory_is_refused(self, tmp_path: Path) -> None:
        save_file({"a": A}, tmp_path / "secret.safetensors")
        (tmp_path / "m").mkdir()
        (tmp_path / "m" / "model.safetensors").symlink_to("../secret.safetensors")
        with pytest.raises(CheckpointError, match="a link that leads out"):
            Checkpoint(tmp_path / "m")

    def test_companions_too(self, tmp_path: Path) -> None:
        single(tmp_path / "m")
        (tmp_path / "secret").write_text("x")
        (tmp_path / "m" / "tokenizer.json").symlink_to(tmp_path / "secret")
        with pytest.raises(CheckpointError, match=r"refusing 'tokenizer\.json'"):
            Checkpoint(tmp_path / "m").fingerprint()

    def test_within_the_directory_is_allowed(self, tmp_path: Path) -> None:
        save_file({"a": A}, tmp_path / "weights.bin.safetensors")
        (tmp_path / "model.safetensors").symlink_to("weights.bin.safetensors")
        assert Checkpoint(tmp_path).names() == ["a"]

    def test_through_a_linked_directory_is_allowed(self, tmp_path: Path) -> None:
        single(tmp_path / "m")
        (tmp_path / "link").symlink_to("m")
        assert Checkpoint(tmp_path / "link").names() == ["a", "b"]

    @pytest.mark.parametrize(("target", "allowed"), [("../../blobs/f00", True), ("../../../other/blobs/f00", False)])
    def test_hub_cache_may_link_to_its_own_blobs(self, tmp_path: Path, target: str, allowed: bool) -> None:
        snapshot = tmp_path / "models--o--n" / "snapshots" / "c0ffee"
        snapshot.mkdir(parents=True)
        for blobs in (tmp_path / "models--o--n" / "blobs", tmp_path / "other" / "blobs"):
            blobs.mkdir(parents=True)
            save_file({"a": A}, blobs / "f00")
        (snapshot / "model.safetensors").symlink_to(target)
        if allowed:
            assert torch.equal(Checkpoint(snapshot).read("a"), A)
        else:
            with pytest.raises(CheckpointError, match="a link that leads out"):
                Checkpoint(snapshot)


class Payload:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, ...]:
        return (os.mkdir, (str(self.file),))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "weights.pkl"])
def test_a_malicious_pickle_never_runs(tmp_path: Path, name: str) -> None:
    target = tmp_path / "harm"
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / name).write_bytes(pickle.dumps(Payload(target)))
    with pytest.raises(CheckpointError, match="safetensors version of the model") as caught:
        Checkpoint(tmp_path / "m")
    assert name in str(caught.value)
    assert not target.exists()
    pickle.loads((tmp_path / "m" / name).read_bytes())
    assert target.exists()  # the payload was live


def test_safetensors_are_taken_where_both_are(tmp_path: Path) -> None:
    single(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(tmp_path / "harm")))
    assert Checkpoint(tmp_path).names() == ["a", "b"]
    assert not (tmp_path / "harm").exists()
    assert "pytorch_model.bin" not in companions(tmp_path)


def test_read_json_names_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json is missing from"):
        read_json(tmp_path / "config.json")

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lowdim.core.errors import CheckpointError
from lowdim.models.disk.shard import DTYPES, read_header, read_tensor, tensor_bytes, write_file


def written(tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    file = io.BytesIO()
    write_file(file, tensors, metadata or {})
    return file.getvalue()


def some_tensors() -> dict[str, Tensor]:
    values = torch.arange(-8, 8)
    named = {name: values.to(dtype) for name, dtype in DTYPES.items() if name not in {"F8_E4M3", "F8_E5M2"}}
    named |= {"F8_E4M3": values.to(torch.float8_e4m3fn), "F8_E5M2": values.to(torch.float8_e5m2)}
    named |= {"one": torch.tensor([3.0]).as_strided((1,), (0,)), "strided": torch.rand(4, 6).T}
    return named | {"empty": torch.zeros(0, 3), "scalar": torch.tensor(2.5)}


def test_the_library_reads_what_is_written(tmp_path: Path) -> None:
    tensors = some_tensors()
    (tmp_path / "x.safetensors").write_bytes(written(tensors, {"format": "pt", "b": "ü"}))
    read = load_file(tmp_path / "x.safetensors")
    assert sorted(read) == sorted(tensors)
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert read[name].shape == tensor.shape
        assert tensor_bytes(read[name]) == tensor_bytes(tensor)


def test_what_the_library_writes_is_read(tmp_path: Path) -> None:
    tensors = {name: tensor.contiguous() for name, tensor in some_tensors().items()}
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt", "who": "me"})
    header = read_header(tmp_path / "x.safetensors")
    assert header.metadata == {"format": "pt", "who": "me"}
    for name, tensor in tensors.items():
        read = read_tensor(header.tensors[name])
        assert (read.dtype, read.shape) == (tensor.dtype, tensor.shape)
        assert tensor_bytes(read) == tensor_bytes(tensor)


def test_tensors_are_aligned_and_not_mapped(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(3, dtype=torch.uint8), "b": torch.ones(33)}, file)
    before = file.read_bytes()
    header = read_header(file)
    for name in ("a", "b"):
        tensor = read_tensor(header.tensors[name])
        assert tensor.data_ptr() % 64 == 0
        tensor.zero_()
        assert torch.all(read_tensor(header.tensors[name]) == 1)
    assert file.read_bytes() == before
    mapped = Path("/proc/self/maps")
    if mapped.exists():
        assert str(file) not in mapped.read_text()


def test_data_start_aligned(tmp_path: Path) -> None:
    tensors = {
        "a": torch.ones(3, dtype=torch.int8),
        "b": torch.ones(5),
        "c": torch.ones(1, dtype=torch.int64),
    }
    (tmp_path / "x.safetensors").write_bytes(written(tensors))
    for stored in read_header(tmp_path / "x.safetensors").tensors.values():
        assert stored.start % stored.dtype.itemsize == 0


def test_bytes_do_not_depend_on_order_or_hash_seed() -> None:
    """The safetensors library orders metadata by a hash that differs from process to process."""
    code = (
        f"import sys, hashlib, torch; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_shard import written\n"
        "m = {f'k{i}': 'v' for i in range(20)}; t = {f't{i}': torch.ones(i) for i in range(20)}\n"
        "print(hashlib.sha256(written(t, m)).hexdigest())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    other = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    metadata = {f"k{i}": "v" for i in range(20)}
    tensors = {f"t{i}": torch.ones(i) for i in range(20)}
    assert other.stdout.strip() == hashlib.sha256(written(tensors, metadata)).hexdigest()
    backwards = dict(reversed(tensors.items())), dict(reversed(metadata.items()))
    assert written(tensors, metadata) == written(*backwards)


def test_copying_from_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lowdim.models.disk.shard._CHUNK", 7)
    tensors = some_tensors()
    (tmp_path / "x.safetensors").write_bytes(written(tensors))
    stored = dict(read_header(tmp_path / "x.safetensors").tensors)
    file = io.BytesIO()
    write_file(file, stored, {})
    assert file.getvalue() == (tmp_path / "x.safetensors").read_bytes()


def lie(header: object, body: bytes = b"\0" * 16) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def entry(start: int, stop: int, dtype: str = "F32", shape: tuple[int, ...] = (4,)) -> dict[str, object]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


DAMAGED = {
    "zero bytes": b"",
    "cut in the length": b"\0\0\0",
    "cut in the header": written({"a": torch.ones(4)})[:30],
    "cut in the data": written({"a": torch.ones(4)})[:-1],
    "trailing bytes": written({"a": torch.ones(4)}) + b"x",
    "4 GB header": (1 << 32).to_bytes(8, "little") + b"{" * 100,
    "largest length": b"\xff" * 8 + b"{}",
    "not UTF-8": lie(b'{"\xff\xfe": 1}'),
    "not JSON": lie(b"{{{{{{{{"),
    "an array": lie([]),
    "negative offset": lie({"a": entry(-16, 0)}),
    "overlap": lie({"a": entry(0, 16), "b": entry(8, 24)}, b"\0" * 24),
    "hole": lie({"a": entry(0, 16), "b": entry(20, 36)}, b"\0" * 36),
    "beyond the end": lie({"a": entry(0, 1 << 60, shape=(1 << 58,))}),
    "shape against range": lie({"a": entry(0, 16, shape=(5,))}),
    "dtype against range": lie({"a": entry(0, 16, dtype="F64")}),
    "overflowing shape": lie({"a": entry(0, 16, shape=(1 << 40, 1 << 40))}),
    "unknown dtype": lie({"a": entry(0, 16, dtype="F33")}),
    "duplicate key": lie(b'{"a":%s,"a":%s}' % ((json.dumps(entry(0, 16)).encode(),) * 2)),
    "metadata not text": lie({"__metadata__": {"a": 1}, "a": entry(0, 16)}),
}


@pytest.mark.parametrize("fault", DAMAGED)
def test_damaged_files_are_refused_by_name(fault: str, tmp_path: Path) -> None:
    (tmp_path / "bad.safetensors").write_bytes(DAMAGED[fault])
    with pytest.raises(CheckpointError, match=r"bad\.safetensors") as caught:
        read_header(tmp_path / "bad.safetensors")
    assert ("is empty (0 bytes)" in str(caught.value)) == (fault == "zero bytes")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"gone\.safetensors"):
        read_header(tmp_path / "gone.safetensors")


def test_a_dtype_torch_computes_nothing_in(tmp_path: Path) -> None:
    (tmp_path / "q.safetensors").write_bytes(lie({"w": entry(0, 16, dtype="F8_E8M0", shape=(16,))}))
    with pytest.raises(CheckpointError, match=r"'w' has dtype F8_E8M0 \(an already quantised"):
        read_header(tmp_path / "q.safetensors")


def test_a_file_that_shrinks_after_it_was_opened(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(written({"a": torch.ones(1000)}))
    stored = read_header(file).tensors["a"]
    os.truncate(file, file.stat().st_size - 100)
    with pytest.raises(CheckpointError, match="became shorter"):
        read_tensor(stored)
    with pytest.raises(CheckpointError, match="became shorter"):
        write_file(io.BytesIO(), {"a": stored}, {})

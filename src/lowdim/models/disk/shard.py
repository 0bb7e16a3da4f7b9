"""One safetensors file: its header read, its tensors copied out, its bytes written the same on every run.

The safetensors library validates every file that is read. Writing is done here for two reasons: the library orders
``__metadata__`` by a hash that changes from process to process, and it wants every tensor of a file in memory at once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lowdim.core.errors import CheckpointError

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
_CHUNK = 16 << 20


@dataclass(frozen=True)
class Stored:
    """Where a tensor's bytes lie: ``file[start:stop]``, little-endian, row-major."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    file: Path
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return self.stop - self.start


@dataclass(frozen=True)
class Header:
    """What a safetensors file says about itself."""

    tensors: dict[str, Stored]
    metadata: dict[str, str]


def read_header(path: Path) -> Header:
    """Validate a safetensors file and return its header; no tensor is read.

    Raises:
        CheckpointError: the file is empty, cut short, or its header lies or holds a dtype torch does not have.
    """
    try:
        with safe_open(str(path), framework="pt"):
            pass
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            raw: dict[str, Any] = json.loads(file.read(length), object_pairs_hook=_distinct)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(_unreadable(path, error)) from error
    metadata = raw.pop("__metadata__", None) or {}
    return Header({name: _stored(path, name, entry, 8 + length) for name, entry in raw.items()}, metadata)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key occurs twice in the header")
    return found


def _unreadable(path: Path, error: Exception) -> str:
    size = path.stat().st_size if path.is_file() else None
    what = "is empty (0 bytes)" if size == 0 else f"is not a valid safetensors file: {error}"
    return f"{path.name} {what}. The download or copy was probably cut short: fetch {path} again."


def _stored(path: Path, name: str, entry: dict[str, Any], base: int) -> Stored:
    if entry["dtype"] not in DTYPES:
        known = "an already quantised or packed format" if entry["dtype"].startswith("F") else "not supported"
        raise CheckpointError(
            f"{path.name}: tensor {name!r} has dtype {entry['dtype']} ({known}). Use a bfloat16, float16 or "
            "float32 checkpoint of the same model."
        )
    start, stop = entry["data_offsets"]
    return Stored(DTYPES[entry["dtype"]], tuple(entry["shape"]), path, base + start, base + stop)


def read_tensor(stored: Stored) -> Tensor:
    """Copy a tensor into ordinary, 64-byte aligned memory (never a view of a mapped file).

    Raises:
        CheckpointError: the file became shorter since its header was read, or cannot be read.
    """
    data = torch.empty(stored.nbytes, dtype=torch.uint8)
    view = data.numpy().data
    done = 0
    try:
        with stored.file.open("rb", buffering=0) as file:
            file.seek(stored.start)
            while done < stored.nbytes:
                count = file.readinto(view[done : done + _CHUNK])
                if not count:
                    raise CheckpointError(f"{stored.file.name} became shorter while it was being read")
                done += count
    except OSError as error:
        raise CheckpointError(f"cannot read {stored.file}: {error.strerror}") from error
    return data.view(stored.dtype).reshape(stored.shape)


def tensor_bytes(tensor: Tensor) -> memoryview:
    """Return a tensor's bytes, row-major, copying only what is not contiguous or not on the CPU."""
    dense = tensor.detach().cpu().contiguous()
    flat = dense.as_strided((dense.numel(),), (1,))  # one element may come with stride 0, which has no bytes
    return flat.view(torch.uint8).numpy().data


def write_file(file: IO[bytes], tensors: Mapping[str, Tensor | Stored], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file whose bytes depend on the names, values and metadata alone.

    Tensors are ordered by item size (largest first, so that each starts aligned), then by name. A ``Stored``
    entry is copied from its file piece by piece.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    offset = 0
    for name in order:
        size = nbytes(tensors[name])
        dtype = NAMES[tensors[name].dtype]
        header[name] = {"dtype": dtype, "shape": list(tensors[name].shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in order:
        for piece in _pieces(tensors[name]):
            file.write(piece)


def nbytes(tensor: Tensor | Stored) -> int:
    """Bytes of a tensor's values."""
    return math.prod(tensor.shape) * tensor.dtype.itemsize


def _pieces(tensor: Tensor | Stored) -> Iterator[bytes | memoryview]:
    if isinstance(tensor, Tensor):
        data = tensor_bytes(tensor)
        yield from (data[at : at + _CHUNK] for at in range(0, len(data), _CHUNK))
        return
    with tensor.file.open("rb") as file:
        file.seek(tensor.start)
        left = tensor.nbytes
        while left:
            piece = file.read(min(_CHUNK, left))
            if not piece:
                raise CheckpointError(f"{tensor.file.name} became shorter while it was being copied")
            left -= len(piece)
            yield piece

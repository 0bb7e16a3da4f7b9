"""A weight matrix as the kernels read it: dense, or a bitmask with packed values, in one of five kinds of number.

| kind | values | activations |
|---|---|---|
| fp32 | fp32 | fp32 |
| bf16 | bf16 | rounded to bf16 |
| int8 | codes times a bf16 scale per row and group of columns | int8, one scale per token and group |
| int4 | indices into 16 levels, times such a scale | as int8 |
| int3 | indices into 8 levels, times such a scale; dense only | as int8 |

Products sum in fp32. Up to `DIRECT_TOKENS` tokens, of fp32 matrices with AVX-512 up to `DIRECT_FP32`, go through a
kernel that reads the packed weight once for eight of them; beyond that the matrix is decoded, a tile that fits the
cache at a time, and torch multiplies: activations are then not quantised, and, where the processor multiplies bf16,
both factors are rounded to bf16 (fp32 matrices excepted).
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from lowdim.core.errors import CheckpointError, LowdimError
from lowdim.core.native import MatrixStruct, library, warn_without_kernels
from lowdim.core.packing.bits import pack_bits
from lowdim.core.packing.nibbles import pack_nibbles
from lowdim.core.packing.records import KEPT, RECORD, records_shape, spread_records
from lowdim.core.quantize import Grid
from lowdim.infer.sparse import fallback
from lowdim.infer.sparse.storage import (
    KIND_OF,
    KINDS,
    PACKABLE,
    QUANTISED,
    VALUES,
    StoredMatrix,
    aligned,
    check_dense,
    check_records,
    check_weight,
    dense_tensors,
    kind_of,
    offsets,
    pack_weight,
)
from lowdim.models.disk.packed import Form, Packed

DIRECT_TOKENS, DIRECT_FP32 = 24, 128
TILE_BYTES = 4 << 20
_FLOATS = {torch.float32: 0, torch.bfloat16: 1}
_scratch = threading.local()


@dataclass(frozen=True, eq=False)
class Matrix(StoredMatrix):
    """One weight, ``[rows, cols]``, and its products; its tensors are explained at `StoredMatrix`."""

    @classmethod
    def from_dense(
        cls,
        weight: Tensor,
        dtype: str | torch.dtype = "bf16",
        group: int = 64,
        mask: Tensor | None = None,
        bias: Tensor | None = None,
        packed: bool = True,
    ) -> Matrix:
        """Round a weight ``[rows, cols]`` to a kind and pack it; arguments as in `SparseLinear.from_linear`.

        Unpacked fp32 and bf16 that need no rounding are shared with ``weight``, not copied.

        Example:
            >>> matrix = Matrix.from_dense(torch.tensor([[0.0, 2.0], [3.0, 0.0], [0.0, 0.0]]))
            >>> matrix.linear(torch.tensor([1.0, 10.0])).tolist(), matrix.sparsity
            ([20.0, 3.0, 0.0], 0.6666666666666667)
        """
        kind, weight = kind_of(dtype), weight.detach()
        check_weight(weight, mask)
        if packed and (weight.numel() or kind not in PACKABLE):
            return cls.from_packed(pack_weight(weight, kind, group, mask), bias)
        if mask is not None and not packed:
            raise LowdimError("mask belongs to a packed matrix; leave it out, or packed=False.")
        return cls.from_stored(
            kind, (weight.shape[0], weight.shape[1]), dense_tensors(weight, kind, group), group, bias
        )

    @classmethod
    def from_packed(cls, packed: Packed, bias: Tensor | None = None) -> Matrix:
        """Take over a packed weight as a checkpoint stores it, after checking it completely; fp16 becomes fp32.

        Raises:
            CheckpointError: its tensors do not fit each other, or the kernels do not know the type of the values.
        """
        form, values = packed.form, packed.values
        counts = packed.check()
        if form.grid is None and form.dtype == torch.float16:
            values = values.float()
        kind = form.grid.name if form.grid else KIND_OF.get(values.dtype)
        if kind is None or (packed.table is not None and packed.table.ndim != 1):
            raise CheckpointError(f"there are no kernels for packed {form.dtype} of shape {list(form.shape)}")
        return cls(
            kind,
            form.rows,
            form.cols,
            form.grid.group if form.grid else 0,
            aligned(values.contiguous()),
            None if packed.mask is None else aligned(packed.mask.contiguous()),
            None if packed.mask is None else offsets(counts, kind),
            packed.scales,
            packed.table,
            bias,
        )

    @classmethod
    def from_stored(
        cls,
        kind: str,
        shape: tuple[int, int],
        tensors: Mapping[str, Tensor],
        group: int = 64,
        bias: Tensor | None = None,
    ) -> Matrix:
        """Take over the tensors of a state dict after checking that no product with them can leave their bounds.

        Args:
            kind: one of `KINDS`.
            shape: ``(rows, cols)``.
            tensors: ``values``, and ``mask``, ``scales`` and ``table`` as the kind and the storage have them.
            group: columns per scale.
            bias: ``[rows]``, or ``None``.

        Raises:
            CheckpointError: a tensor is missing, or has another type, shape or content than the format allows.
        """
        held = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
        if "values" in held and held["values"].ndim == 4:
            check_records(kind, *shape, group, held)
            group = group if kind in QUANTISED else 0
            scales, table = held.get("scales"), held.get("table")
            return cls(kind, *shape, group, held["values"], scales=scales, table=table, bias=bias)
        grid, masked = Grid.of(kind, group) if kind in QUANTISED else None, "mask" in held
        if grid is None and not masked:
            check_dense(kind, *shape, held)
            return cls(kind, *shape, 0, held["values"], bias=bias)
        form = Form(shape, torch.float32 if grid else VALUES[kind], grid, masked=masked)
        if held.keys() != set(form.parts):
            stored = "packed" if masked else "dense"
            raise CheckpointError(f"a {stored} {kind} matrix has {sorted(form.parts)}, got {sorted(held)}")
        return cls.from_packed(Packed(form, held.pop("mask", None), **held), bias)

    def __post_init__(self) -> None:
        warn_without_kernels()
        if self.bias is not None and (self.bias.shape != (self.rows,) or self.bias.dtype != torch.float32):
            raise CheckpointError(f"the bias must be fp32 [{self.rows}], got {self.bias.dtype} {list(self.bias.shape)}")
        found = library()
        if found is not None and (status := found.check(self._address)):
            raise CheckpointError(f"the packed weight is damaged: {found.message(status)}")

    def struct(self) -> MatrixStruct:
        """Return the ``ld_matrix`` of these tensors, valid as long as this object lives."""
        return self._struct

    @cached_property
    def _struct(self) -> MatrixStruct:
        addresses = {name: tensor.data_ptr() for name, tensor in self.tensors().items()}
        return MatrixStruct(
            kind=KINDS.index(self.kind),
            group=self.group,
            rows=self.rows,
            cols=self.cols,
            mask_words=0 if self.mask is None else self.mask.shape[1],
            value_bytes=self.values.nbytes,
            layout=self.kept,
            **addresses,
        )

    @cached_property
    def _address(self) -> int:
        return ctypes.addressof(self._struct)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    @cached_property
    def sparsity(self) -> float:
        """Share of zeros; of a packed matrix, of what is not stored."""
        if self.rows * self.cols == 0:
            return 0.0
        if self.mask is not None:
            kept = int(np.bitwise_count(self.mask.numpy().view(np.uint64)).sum())
        else:
            kept = sum(int(torch.count_nonzero(self.unpack(*tile))) for tile in self._tiles(4))
        return 1 - kept / (self.rows * self.cols)

    @property
    def kernel(self) -> str:
        """What computes a product with few tokens, e.g. "packed int8, avx512"."""
        found = library()
        return f"{self.form} {self.kind}, {'torch' if found is None else found.level}"

    def in_records(self, kept: int | None = None) -> Matrix | None:
        """Return the same numbers as some values for every 16 columns; ``None`` where kind or mask do not allow it.

        Eight values take a bit more for each weight than with a mask, four take as much, and both less time on most
        processors.

        Args:
            kept: 8 or 4; ``None``: as few as the mask allows.
        """
        found = library()
        if found is None or self.mask is None or self.kind not in RECORD or self.cols % 16 or not self.values.numel():
            return None
        for count in KEPT if kept is None else (kept,):
            values = torch.empty(records_shape(self.kind, count, self.rows, self.cols), dtype=torch.uint8)
            threads = torch.get_num_threads()
            if not found.records(self._address, count, values.data_ptr(), values.nbytes, threads):
                return replace(self, values=values, mask=None, row_ptr=None)
        return None

    def masked(self) -> Matrix:
        """Undo `in_records`: with a mask, as files hold it."""
        if not self.kept:
            return self
        values, kept = spread_records(self.values, self.kind, self.rows, self.cols)
        packed = pack_nibbles(values, kept) if self.kind == "int4" else values[kept]
        mask = pack_bits(kept)[:, : -(-self.cols // 64)].contiguous()
        rounded = {"scales": self.scales, "table": self.table}
        parts = {"values": packed, "mask": mask, **{n: part for n, part in rounded.items() if part is not None}}
        return Matrix.from_stored(self.kind, (self.rows, self.cols), parts, self.group, self.bias)

    def dense(self) -> Matrix:
        """Return the same numbers without a mask; of int4 as int8, whose levels include zero."""
        kind = "int8" if self.kind == "int4" else self.kind
        if self.scales is None:
            return Matrix(kind, self.rows, self.cols, 0, self.unpack(dtype=VALUES[kind]), bias=self.bias)
        levels = aligned(fallback.levels(self, 0, self.rows))
        return Matrix(kind, self.rows, self.cols, self.group, levels, scales=self.scales, bias=self.bias)

    def unpack(self, begin: int = 0, end: int | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return rows ``[begin, end)`` as a dense matrix, fp32 or bf16."""
        end = self.rows if end is None else end
        if not 0 <= begin <= end <= self.rows:
            raise LowdimError(f"rows must lie in [0, {self.rows}], got [{begin}, {end})")
        return self._unpack(begin, end, torch.empty(end - begin, self.cols, dtype=dtype))

    def linear(self, x: Tensor) -> Tensor:
        """Return ``x W^T + bias``.

        Args:
            x: fp32, bf16 or fp16 ``[..., cols]`` on the CPU.

        Returns:
            ``[..., rows]`` in the type of ``x``.

        Raises:
            LowdimError: another type, width or device.

        Example:
            >>> Matrix.from_dense(torch.eye(3)[:2], "fp32", bias=torch.ones(2)).linear(torch.arange(3.0))
            tensor([1., 2.])
        """
        kind, tokens, shape = _FLOATS.get(x.dtype), x.numel() // (self.cols or 1), x.shape
        if kind is None or not tokens or not x.is_cpu or shape[-1] != self.cols:
            return self._unusual(x)
        found = library()
        wide = self.kind == "fp32" and found is not None and found.level == "avx512"
        if tokens > (DIRECT_FP32 if wide else DIRECT_TOKENS):
            return self._tiled(x.reshape(tokens, self.cols)).view(*shape[:-1], self.rows)
        if found is None:
            return self._in_torch(x)
        if not x.is_contiguous():
            x = x.contiguous()
        y, threads = x.new_empty((*shape[:-1], self.rows)), torch.get_num_threads()
        status = found.linear(
            self._address, kind, x.data_ptr(), self.cols, tokens, kind, y.data_ptr(), self.rows, threads
        )
        if status:
            raise LowdimError(f"the kernels refused: {found.message(status)}")
        return y

    def _unusual(self, x: Tensor) -> Tensor:
        """Multiply what the kernels do not take as it is, or say why not."""
        if x.dtype not in _FLOATS and x.dtype != torch.float16:
            raise LowdimError(f"a sparse layer takes fp32, bf16 or fp16 activations, got {x.dtype}.")
        if x.ndim == 0 or x.shape[-1] != self.cols:
            raise LowdimError(f"activations must be [..., {self.cols}], got {list(x.shape)}.")
        if not x.is_cpu:
            raise LowdimError(f"sparse layers run on the CPU, got activations on {x.device}: move them with .cpu().")
        if x.numel():
            return self.linear(x.float()).to(x.dtype)
        empty = x.new_zeros(*x.shape[:-1], self.rows)
        return empty if self.bias is None else empty + self.bias.to(x.dtype)

    def _in_torch(self, x: Tensor) -> Tensor:
        product = fallback.multiply(self, x.float().reshape(-1, self.cols))
        product = product if self.bias is None else product + self.bias
        return product.view(*x.shape[:-1], self.rows).to(x.dtype)

    def _tiled(self, x: Tensor) -> Tensor:
        """Decode a tile of rows into a scratch that stays in the cache, where need be; let torch multiply with it."""
        dtype = torch.float32 if self.kind == "fp32" or not multiplies_bf16() else torch.bfloat16
        factor, y = x.to(dtype), x.new_empty(x.shape[0], self.rows)
        plain = self.form == "dense" and self.values.dtype == dtype
        for begin, end in [(0, self.rows)] if plain else self._tiles(dtype.itemsize):
            weight = self.values if plain else self._unpack(begin, end, _tile(end - begin, self.cols, dtype))
            bias = None if self.bias is None else self.bias[begin:end].to(dtype)
            y[:, begin:end] = functional.linear(factor, weight, bias)
        return y

    def _tiles(self, itemsize: int) -> list[tuple[int, int]]:
        step = max(16, TILE_BYTES // max(self.cols * itemsize, 1) // 16 * 16)
        return [(at, min(at + step, self.rows)) for at in range(0, self.rows, step)]

    def _unpack(self, begin: int, end: int, out: Tensor) -> Tensor:
        found = library()
        if found is None:
            return out.copy_(fallback.unpack(self, begin, end, out.dtype))
        kind, threads = _FLOATS[out.dtype], torch.get_num_threads()
        status = found.unpack(self._address, begin, end, kind, out.data_ptr(), self.cols, threads)
        if status:
            raise LowdimError(f"the kernels refused: {found.message(status)}")
        return out


@cache
def multiplies_bf16() -> bool:
    """Return whether this processor has products of bf16 matrices of its own."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _tile(rows: int, cols: int, dtype: torch.dtype) -> Tensor:
    """Return this thread's scratch, which grows as needed: fresh memory would cost a page fault every 4 KiB."""
    held: dict[Any, Tensor] = _scratch.__dict__
    if dtype not in held or held[dtype].numel() < rows * cols:
        with torch.inference_mode(False):
            held[dtype] = torch.empty(rows * cols, dtype=dtype)
    return held[dtype][: rows * cols].view(rows, cols)

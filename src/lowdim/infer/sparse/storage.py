"""What a matrix stores, and how its tensors are made and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from lowdim.core.errors import CheckpointError, LowdimError, suggest
from lowdim.core.packing.nibbles import pack_nibbles
from lowdim.core.packing.octets import pack_octets
from lowdim.core.packing.records import KEPT, RECORD, records_shape
from lowdim.core.quantize import Grid, encode, indices
from lowdim.models.disk.packed import Counts, Form, Packed, pack, pack_levels

KINDS = ("fp32", "bf16", "int8", "int4", "int3")  # in the order of ld_kind
QUANTISED = frozenset({"int8", "int4", "int3"})
PACKABLE = frozenset(KINDS) - {"int3"}
"""Kinds that are stored with a mask too."""
VALUES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "int8": torch.int8,
    "int4": torch.uint8,
    "int3": torch.uint8,
}
KIND_OF = {torch.float32: "fp32", torch.bfloat16: "bf16"}


@dataclass(frozen=True, eq=False)
class StoredMatrix:
    """The tensors of one weight, ``[rows, cols]``.

    Attributes:
        kind: one of `KINDS`.
        rows: outputs.
        cols: inputs.
        group: columns per scale, 64 or 128; 0 where there are no scales.
        values: see ``csrc/lowdim.h``; 1-D if there is a mask; uint8, 4-D where every 16
            columns hold eight or four values (`lowdim.core.packing.records`); else ``[rows, cols]`` (int4:
            ``[ceil(rows / 2), cols]``, int3: ``[ceil(rows / 8), 192 * ceil(cols / 64)]``).
        mask: int64 ``[rows, ceil(cols / 64)]``; ``None``: dense.
        row_ptr: int64, where each row's (int4: pair of rows') values begin, in bytes; ``None``: dense.
        scales: bf16 ``[rows, ceil(cols / group)]``; ``None`` for fp32 and bf16.
        table: int8 ``[16]``, int4 only; ``[8]``, int3 only.
        bias: fp32 ``[rows]``, or ``None``.
    """

    kind: str
    rows: int
    cols: int
    group: int
    values: Tensor
    mask: Tensor | None = None
    row_ptr: Tensor | None = None
    scales: Tensor | None = None
    table: Tensor | None = None
    bias: Tensor | None = None

    @property
    def kept(self) -> int:
        """Values that every 16 columns have in this form; 0 where it has another."""
        return self.values.shape[2] if self.values.ndim == 4 else 0

    @property
    def form(self) -> str:
        """How it lies in memory: "dense", "packed" with a mask, "8:16" or "4:16"."""
        return f"{self.kept}:16" if self.kept else "dense" if self.mask is None else "packed"

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor, by the name of its attribute."""
        held = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: tensor for name, tensor in held.items() if isinstance(tensor, Tensor)}


def kind_of(dtype: str | torch.dtype) -> str:
    """Return the kind that a name or a torch type means.

    Example:
        >>> kind_of("int8"), kind_of(torch.bfloat16)
        ('int8', 'bf16')
    """
    if isinstance(dtype, torch.dtype):
        if dtype in KIND_OF:
            return KIND_OF[dtype]
    elif dtype in KINDS:
        return dtype
    raise LowdimError(f"dtype must be one of {', '.join(KINDS)}, got {dtype!r}. {suggest(str(dtype), KINDS)}")


def check_weight(weight: Tensor, mask: Tensor | None) -> None:
    """Refuse what is not a floating-point matrix on the CPU, or a mask that is not of its shape."""
    if weight.ndim != 2 or not weight.is_floating_point():
        raise LowdimError(f"weight must be a floating-point matrix, got {weight.dtype} {weight.ndim}-D.")
    if weight.device.type != "cpu":
        raise LowdimError(f"weight is on {weight.device}; the kernels run on the CPU: move it with .cpu().")
    if mask is not None and (mask.dtype != torch.bool or mask.shape != weight.shape):
        raise LowdimError(f"mask must be bool {list(weight.shape)}, got {mask.dtype} {list(mask.shape)}.")


def pack_weight(weight: Tensor, kind: str, group: int, mask: Tensor | None) -> Packed:
    """Round a weight to a kind and pack it; ``mask``: what to keep, ``None`` for whatever is not zero.

    Raises:
        LowdimError: a kind that is stored dense only.
        NumericalError: a weight to be quantised is NaN or Inf.
    """
    if kind not in PACKABLE:
        raise LowdimError(f"{kind} weights have no mask and skip no zeros: store them dense, packed=False.")
    mask = weight != 0 if mask is None else mask
    if kind not in QUANTISED:
        return pack(torch.where(mask, weight + 0.0, 0.0).to(VALUES[kind]))
    grid = Grid.of(kind, group)
    levels, scales, _ = encode(weight, mask, grid)
    return pack_levels(levels, scales, Form(tuple(weight.shape), torch.float32, grid))


def dense_tensors(weight: Tensor, kind: str, group: int) -> dict[str, Tensor]:
    """Return the tensors of a weight that is stored without a mask; they may share its memory.

    Raises:
        NumericalError: a weight to be quantised is NaN or Inf.
    """
    if kind not in QUANTISED:
        return {"values": weight.to(VALUES[kind])}
    levels, scales, table = encode(weight, None, Grid.of(kind, group))
    if table is None:
        return {"values": levels, "scales": scales}
    pack_codes = pack_octets if kind == "int3" else pack_nibbles
    return {"values": aligned(pack_codes(indices(levels, table))), "scales": scales, "table": table}


def aligned(tensor: Tensor) -> Tensor:
    """Return a tensor that begins on a cache line, as torch's own do and numpy's do not."""
    return tensor if tensor.data_ptr() % 64 == 0 else tensor.clone()


def check_dense(kind: str, rows: int, cols: int, held: Mapping[str, Tensor]) -> None:
    """Check that a matrix of fp32 or bf16 without a mask has its values alone, in the right type and shape."""
    if held.keys() != {"values"}:
        raise CheckpointError(f"a dense {kind} matrix has ['values'], got {sorted(held)}")
    found = held["values"]
    if found.dtype != VALUES[kind] or list(found.shape) != [rows, cols]:
        raise CheckpointError(f"values must be {VALUES[kind]} {[rows, cols]}, got {found.dtype} {list(found.shape)}")


def check_records(kind: str, rows: int, cols: int, group: int, held: Mapping[str, Tensor]) -> None:
    """Check a matrix of some values for every 16 columns, but for where these are: the kernels do that."""
    kept = held["values"].shape[2]
    if kind not in RECORD or kept not in KEPT or cols % 16:
        raise CheckpointError(f"{kind} of {cols} columns cannot hold {kept} values for every 16 of them")
    shape = records_shape(kind, kept, rows, cols)
    wanted: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {"values": (torch.uint8, shape)}
    if kind in QUANTISED:
        wanted["scales"] = (torch.bfloat16, (rows, -(-cols // group)))
    if kind == "int4":
        wanted["table"] = (torch.int8, (16,))
    if held.keys() != wanted.keys():
        raise CheckpointError(f"an N:M {kind} matrix has {sorted(wanted)}, got {sorted(held)}")
    for name, (dtype, shape_of) in wanted.items():
        if held[name].dtype != dtype or tuple(held[name].shape) != shape_of:
            found = f"{held[name].dtype} {list(held[name].shape)}"
            raise CheckpointError(f"{name} must be {dtype} {list(shape_of)}, got {found}")


def offsets(counts: Counts, kind: str) -> Tensor:
    """Return where each row's values begin, in bytes; of int4, each pair of rows'."""
    if kind == "int4":
        counts = np.maximum.reduceat(counts, np.arange(0, len(counts), 2)) if len(counts) else counts
    ends = np.cumsum(counts, dtype=np.int64) * VALUES[kind].itemsize
    return torch.from_numpy(np.concatenate([np.zeros(1, np.int64), ends]))

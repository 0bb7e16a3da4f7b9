"""Eight or four values for every 16 columns, as kernels hold them (``LD_EIGHTS``, ``LD_FOURS`` of ``csrc/lowdim.h``).

A record belongs to two rows and 128 or 256 columns: 32 bytes say which columns the first row's 64 values are of, 32
those of the second, then come the values. No file holds this; it is made of a mask when a layer is loaded, by the
kernels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowdim.core.lazy import torch

if TYPE_CHECKING:
    from typing import Any

    import numpy as np
    from torch import Tensor

    Array = np.ndarray[Any, Any]

RECORD = {"bf16": 320, "int8": 192, "int4": 128}
"""Bytes of a record, by the kind of the values."""
KEPT = (4, 8)
"""Values that 16 columns may have."""
_VALUES = 64


def records_shape(kind: str, kept: int, rows: int, cols: int) -> tuple[int, int, int, int]:
    """Return the shape of the bytes that a matrix takes; its third size is ``kept``.

    Args:
        kind: "bf16", "int8" or "int4".
        kept: values for every 16 columns, 8 or 4.
        rows: of the matrix.
        cols: of the matrix.

    Example:
        >>> records_shape("int8", 8, 5, 144)
        (3, 2, 8, 24)
    """
    return -(-rows // 2), -(-cols // (_VALUES * 16 // kept)), kept, RECORD[kind] // kept


def spread_records(packed: Tensor, kind: str, rows: int, cols: int) -> tuple[Tensor, Tensor]:
    """Return the values at their columns, and which of them are stored.

    Args:
        packed: uint8 ``records_shape(kind, kept, rows, cols)``.
        kind: "bf16", "int8" or "int4".
        rows: of the matrix.
        cols: of the matrix.

    Returns:
        bf16, int8 levels or uint8 indices ``[rows, cols]``, zeros where nothing is stored; bool ``[rows, cols]``.

    Example:
        >>> import torch
        >>> record = torch.zeros(1, 1, 4, 48, dtype=torch.uint8)
        >>> where, values = record.view(-1)[:4], record.view(-1)[64:68]  # of the first 16 columns
        >>> where[:], values[:2] = torch.tensor([0, 2, 5, 9]), torch.tensor([5, 6], dtype=torch.uint8)
        >>> numbers, stored = spread_records(record, "int8", 1, 16)
        >>> numbers[0, :4].tolist(), int(stored.sum())
        ([5, 0, 6, 0], 2)
    """
    import numpy as np

    pairs, stretches, kept, _ = packed.shape
    held = packed.numpy().reshape(pairs, stretches, -1)
    where = held[:, :, :_VALUES].reshape(pairs, stretches, 2, _VALUES // 2)
    values = np.ascontiguousarray(held[:, :, _VALUES:])
    if kind == "int4":
        values = np.stack([values & 15, values >> 4], 2)
    else:
        values = values.view(np.int8 if kind == "int8" else np.int16).reshape(pairs, stretches, 2, _VALUES)
    columns = np.concatenate([where & 15, where >> 4], 3).astype(np.int64) + 16 * _groups(kind, kept)
    spread = np.zeros((pairs, stretches, 2, _VALUES * 16 // kept), values.dtype)
    stored = np.zeros(spread.shape, np.bool_)
    np.put_along_axis(spread, columns, values, 3)
    np.put_along_axis(stored, columns, kind == "int4" or values != 0, 3)
    in_rows = [np.ascontiguousarray(part.transpose(0, 2, 1, 3)) for part in (spread, stored)]
    both = [torch.from_numpy(part.reshape(2 * pairs, -1)[:rows, :cols].copy()) for part in in_rows]
    return (both[0].view(torch.bfloat16) if kind == "bf16" else both[0]), both[1]


def _groups(kind: str, kept: int) -> Array:
    """Return which 16 columns of its record each of the 64 values is of."""
    import numpy as np

    at = np.arange(_VALUES, dtype=np.int64)
    if kind == "bf16":
        return at // kept
    return at // 4 % 4 % (16 // kept) * 4 + at // 16

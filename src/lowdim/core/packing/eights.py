"""Eight values for every 16 columns, as the kernels hold them in memory (``LD_EIGHTS`` of ``csrc/lowdim.h``).

A record belongs to two rows and 128 columns: 32 bytes say which columns the first row's 64 values are of, 32 those of
the second, then come the values. No file holds this; it is made of a mask when a layer is loaded, by the kernels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowdim.core.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

RECORD = {"bf16": 320, "int8": 192, "int4": 128}
"""Bytes of a record, by the kind of the values."""
_COLUMNS, _PLACES = 128, 64


def eights_shape(kind: str, rows: int, cols: int) -> tuple[int, int, int]:
    """Return the shape of the bytes that a matrix takes.

    Example:
        >>> eights_shape("int8", 5, 144)
        (3, 2, 192)
    """
    return -(-rows // 2), -(-cols // _COLUMNS), RECORD[kind]


def spread_eights(packed: Tensor, kind: str, rows: int, cols: int) -> tuple[Tensor, Tensor]:
    """Return the values at their columns, and which of them are stored.

    Args:
        packed: uint8 ``eights_shape(kind, rows, cols)``.
        kind: "bf16", "int8" or "int4".
        rows: of the matrix.
        cols: of the matrix.

    Returns:
        bf16, int8 levels or uint8 indices ``[rows, cols]``, zeros where nothing is stored; bool ``[rows, cols]``.

    Example:
        >>> import torch
        >>> record = torch.zeros(1, 1, 192, dtype=torch.uint8)
        >>> record[0, 0, :8], record[0, 0, 64:66] = torch.arange(8) * 2, torch.tensor([5, 6], dtype=torch.uint8)
        >>> values, stored = spread_eights(record, "int8", 1, 16)
        >>> values[0, :4].tolist(), int(stored.sum())
        ([5, 0, 6, 0], 2)
    """
    import numpy as np

    held = packed.numpy()
    pairs, stretches, _ = held.shape
    where = held[:, :, :_PLACES].reshape(pairs, stretches, 2, _PLACES // 2)
    columns = np.concatenate([where & 15, where >> 4], 3) + np.arange(_PLACES, dtype=np.uint8) // 8 * 16
    values = np.ascontiguousarray(held[:, :, _PLACES:])
    if kind == "int4":
        values = np.stack([values & 15, values >> 4], 2)
    else:
        values = values.view(np.int8 if kind == "int8" else np.int16).reshape(pairs, stretches, 2, _PLACES)
    spread = np.zeros((pairs, stretches, 2, _COLUMNS), values.dtype)
    stored = np.zeros(spread.shape, np.bool_)
    np.put_along_axis(spread, columns.astype(np.int64), values, 3)
    np.put_along_axis(stored, columns.astype(np.int64), kind == "int4" or values != 0, 3)
    in_rows = [np.ascontiguousarray(part.transpose(0, 2, 1, 3)) for part in (spread, stored)]
    both = [torch.from_numpy(part.reshape(2 * pairs, -1)[:rows, :cols].copy()) for part in in_rows]
    return (both[0].view(torch.bfloat16) if kind == "bf16" else both[0]), both[1]

"""Four-bit codes by pairs of rows: one byte has a code of row 2k in its low half, one of row 2k + 1 in its high half.

The i-th byte of a pair holds the i-th code of either row. A pair takes as many bytes as the fuller of its rows has
codes; halves without a code are zero.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lowdim.core.errors import CheckpointError
from lowdim.core.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

_CHUNK = 1 << 22


def nibble_bytes(counts: Any) -> int:
    """Return the bytes that codes take.

    Args:
        counts: codes of each row, an array of int64.

    Example:
        >>> import numpy as np
        >>> nibble_bytes(np.array([3, 1, 1]))
        4
    """
    return int(_starts(counts)[-1])


def pack_nibbles(codes: Tensor, mask: Tensor | None = None) -> Tensor:
    """Pack codes.

    Args:
        codes: uint8 ``[rows, cols]``, each below 16.
        mask: bool of the same shape; only codes where it is set are stored. ``None`` stores all.

    Returns:
        uint8: ``[bytes]`` with a mask, ``[ceil(rows / 2), cols]`` without.

    Example:
        >>> import torch
        >>> mask = torch.tensor([[True, False, True], [True, True, True], [False, True, False]])
        >>> pack_nibbles(torch.tensor([[1, 0, 2], [3, 4, 5], [0, 6, 0]], dtype=torch.uint8), mask).tolist()
        [49, 66, 80, 6]
    """
    import numpy as np

    held = codes.cpu().numpy()
    if mask is None:
        low, high = held[0::2], held[1::2]
        packed = low.copy()
        packed[: len(high)] |= high << 4
        return torch.from_numpy(packed)
    bits = mask.cpu().numpy()
    out = np.zeros(nibble_bytes(bits.sum(axis=1)), dtype=np.uint8)
    for some, half, places in _places(bits):
        out[places] |= held[some][half::2][bits[some][half::2]] << (4 * half)
    return torch.from_numpy(out)


def unpack_nibbles(packed: Tensor, rows: int, mask: Tensor | None = None) -> Tensor:
    """Undo `pack_nibbles`.

    Args:
        packed: uint8, as `pack_nibbles` made it.
        rows: of the matrix.
        mask: the mask that it was packed with, if it was.

    Returns:
        uint8 ``[rows, cols]``, 0 off the mask.

    Raises:
        CheckpointError: size or type does not fit, or a half that belongs to no weight is not zero.

    Example:
        >>> import torch
        >>> unpack_nibbles(torch.tensor([[0x21, 0x43]], dtype=torch.uint8), 2).tolist()
        [[1, 3], [2, 4]]
    """
    import numpy as np

    if mask is None:
        if packed.dtype != torch.uint8 or packed.ndim != 2 or len(packed) != -(-rows // 2):
            raise CheckpointError(f"the codes must be uint8 [{-(-rows // 2)}, cols], got {_form(packed)}")
        held = packed.numpy()
        codes = np.stack([held & 15, held >> 4], axis=1).reshape(2 * len(held), held.shape[1])
        if codes[rows:].any():
            raise CheckpointError("a code stands beyond the last row")
        return torch.from_numpy(codes[:rows].copy())
    bits = mask.cpu().numpy()
    size = nibble_bytes(bits.sum(axis=1))
    if packed.dtype != torch.uint8 or tuple(packed.shape) != (size,):
        raise CheckpointError(f"the codes must be uint8 [{size}], got {_form(packed)}")
    held, used = packed.numpy(), np.zeros(size, dtype=np.uint8)
    codes = np.zeros(bits.shape, dtype=np.uint8)
    for some, half, places in _places(bits):
        codes[some][half::2][bits[some][half::2]] = held[places] >> (4 * half) & 15
        used[places] |= 15 << (4 * half)
    if (held & ~used).any():
        raise CheckpointError("a code stands where there is no weight")
    return torch.from_numpy(codes)


def _form(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _starts(counts: Any) -> Any:
    """Return the byte at which each pair of rows begins, and the end."""
    import numpy as np

    pairs = np.zeros((len(counts) + 1) // 2, dtype=np.int64)
    np.maximum.at(pairs, np.arange(len(counts)) // 2, counts)
    return np.concatenate([[0], pairs.cumsum()])


def _places(bits: Any) -> Any:
    """Yield chunks of an even number of rows; 0 for its even, 1 for its odd rows; and the byte of each of their codes.

    The bytes are in the order of the rows.
    """
    import numpy as np

    rows, cols = bits.shape
    counts = bits.sum(axis=1, dtype=np.int64)
    starts = _starts(counts)
    step = max(2, _CHUNK // max(cols, 1) // 2 * 2)
    for at in range(0, rows, step):
        some = slice(at, min(at + step, rows))
        for half in (0, 1):
            own = counts[some][half::2]
            first = starts[at // 2 : at // 2 + len(own)]
            yield some, half, np.repeat(first - (own.cumsum() - own), own) + np.arange(own.sum())

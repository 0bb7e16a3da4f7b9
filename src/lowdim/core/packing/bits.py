"""Masks as bits: 64 columns to a word, rows padded to a multiple of 128 columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowdim.core.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


def words_per_row(cols: int) -> int:
    """Return how many 64-bit words hold one row of ``cols`` bits, padded to 128.

    Example:
        >>> words_per_row(128), words_per_row(129), words_per_row(0)
        (2, 4, 0)
    """
    return -(-cols // 128) * 2


def pack_bits(mask: Tensor) -> Tensor:
    """Pack a bool matrix into 64-bit words.

    Bit j of word w of a row is column 64 w + j; the padding bits are zero.

    Args:
        mask: bool [rows, cols], True = kept.

    Returns:
        int64 [rows, ceil(cols / 128) * 2] on the CPU.

    Raises:
        ValueError: the mask is not a bool matrix.

    Example:
        >>> import torch
        >>> pack_bits(torch.tensor([[True, False, True, True]]))
        tensor([[13,  0]])
    """
    import numpy as np

    if mask.dtype != torch.bool or mask.ndim != 2:
        raise ValueError(f"mask must be a bool matrix; got {mask.dtype} of shape {tuple(mask.shape)}")
    rows, cols = mask.shape
    packed = np.zeros((rows, words_per_row(cols) * 8), dtype=np.uint8)
    packed[:, : -(-cols // 8)] = np.packbits(mask.detach().cpu().numpy(), axis=1, bitorder="little")
    return torch.from_numpy(packed.view("<i8").astype(np.int64, copy=False))


def unpack_bits(words: Tensor, cols: int) -> Tensor:
    """Undo ``pack_bits``.

    Args:
        words: int64 [rows, ceil(cols / 128) * 2].
        cols: columns of the mask.

    Returns:
        bool [rows, cols] on the CPU.

    Raises:
        ValueError: the words do not fit the width.

    Example:
        >>> import torch
        >>> unpack_bits(torch.tensor([[13, 0]]), 4)
        tensor([[ True, False,  True,  True]])
    """
    import numpy as np

    if words.dtype != torch.int64 or words.ndim != 2 or words.shape[1] != words_per_row(cols):
        want = f"int64 [rows, {words_per_row(cols)}]"
        raise ValueError(f"words for {cols} columns must be {want}; got {words.dtype} of shape {tuple(words.shape)}")
    raw = words.detach().cpu().contiguous().numpy().astype("<i8", copy=False).view(np.uint8)
    bits = np.unpackbits(raw, axis=1, count=cols, bitorder="little") if cols else np.zeros((len(raw), 0), np.uint8)
    return torch.from_numpy(bits.view(np.bool_))

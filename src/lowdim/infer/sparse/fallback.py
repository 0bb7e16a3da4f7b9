"""The products of a stored matrix in plain torch, where the compiled kernels are missing and as a reference for them.

The same numbers up to the order of sums: activations are rounded as the kernels round them, weights decoded a tile of
rows at a time.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from lowdim.core.packing.bits import unpack_bits, words_per_row
from lowdim.core.packing.codebook import LARGEST
from lowdim.core.packing.nibbles import unpack_nibbles
from lowdim.core.packing.octets import ROWS, unpack_octets
from lowdim.core.packing.records import spread_records
from lowdim.core.quantize import spread
from lowdim.infer.sparse.storage import StoredMatrix

TILE = 1 << 20
_TINY = 1e-30


def unpack(matrix: StoredMatrix, begin: int, end: int, dtype: torch.dtype) -> Tensor:
    """Return rows ``[begin, end)`` as a dense ``[end - begin, cols]`` matrix of a floating-point type."""
    if matrix.scales is None:
        return _stored(matrix, begin, end).to(dtype)
    return (levels(matrix, begin, end).float() * spread(matrix.scales[begin:end], matrix.cols, matrix.group)).to(dtype)


def multiply(matrix: StoredMatrix, x: Tensor) -> Tensor:
    """Return ``x W^T`` (no bias) in fp32.

    Args:
        matrix: the weight, ``[rows, cols]``.
        x: fp32 ``[tokens, cols]``.
    """
    if matrix.scales is None:
        weight_type = torch.bfloat16 if matrix.kind == "bf16" else torch.float32
        rounded = x.to(weight_type).float()
        tiles = [rounded @ unpack(matrix, *tile, weight_type).float().t() for tile in _tiles(matrix)]
    else:
        codes, scales = quantize_input(x, matrix.group)
        tiles = [_multiply_levels(matrix, codes, scales, *tile) for tile in _tiles(matrix)]
    return torch.cat(tiles, 1) if tiles else x.new_zeros(len(x), 0)


def quantize_input(x: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """Round activations to 8 bits with one scale per token and group of columns.

    Args:
        x: fp32 ``[tokens, cols]``.
        group: columns per scale.

    Returns:
        The codes, whole numbers in fp32, ``[groups, tokens, group]``, and the scales ``[groups, tokens, 1]``. A group
        that holds NaN or Inf has the scale NaN.

    Example:
        >>> codes, scales = quantize_input(torch.tensor([[254.0, -3.0]]), 2)
        >>> codes.tolist(), scales.tolist()
        ([[[127.0, -2.0]]], [[[2.0]]])
    """
    padded = functional.pad(x, (0, -x.shape[1] % group))
    grouped = padded.reshape(len(x), -1, group).transpose(0, 1)
    largest = grouped.abs().amax(2, keepdim=True)
    finite = torch.isfinite(grouped).all(2, keepdim=True)
    some = finite & (largest >= _TINY)
    codes = torch.where(some, (grouped * (LARGEST / largest)).round(), 0.0)
    scales = torch.where(some, largest / LARGEST, torch.where(finite, 0.0, torch.nan))
    return codes, scales


def _multiply_levels(matrix: StoredMatrix, codes: Tensor, scales: Tensor, begin: int, end: int) -> Tensor:
    """Sum each group exactly (below 2^24, so fp32 will do), then the groups with their scales."""
    assert matrix.scales is not None
    padded = functional.pad(levels(matrix, begin, end).float(), (0, -matrix.cols % matrix.group))
    dots = codes @ padded.reshape(end - begin, -1, matrix.group).permute(1, 2, 0)
    factors = scales * matrix.scales[begin:end].float().t()[:, None, :]
    return (dots * factors).sum(0)


def _tiles(matrix: StoredMatrix) -> Iterator[tuple[int, int]]:
    step = max(ROWS, TILE // max(matrix.cols, 1) // ROWS * ROWS)
    return ((at, min(at + step, matrix.rows)) for at in range(0, matrix.rows, step))


def _kept(matrix: StoredMatrix, begin: int, end: int) -> Tensor:
    assert matrix.mask is not None
    words = matrix.mask[begin:end]
    return unpack_bits(functional.pad(words, (0, words_per_row(matrix.cols) - words.shape[1])), matrix.cols)


def _stored(matrix: StoredMatrix, begin: int, end: int) -> Tensor:
    """Return values, or codes of 8 bits, with zeros where nothing is stored."""
    if matrix.kept:
        return _of_records(matrix, begin, end)[0]
    if matrix.mask is None:
        return matrix.values[begin:end]
    assert matrix.row_ptr is not None
    first, last = (int(matrix.row_ptr[row]) // matrix.values.itemsize for row in (begin, end))
    places = torch.from_numpy(np.flatnonzero(_kept(matrix, begin, end).numpy()))  # faster than a mask
    dense = torch.zeros(end - begin, matrix.cols, dtype=matrix.values.dtype)
    dense.view(-1)[places] = matrix.values[first:last]
    return dense


def levels(matrix: StoredMatrix, begin: int, end: int) -> Tensor:
    """Return the levels of the rows ``[begin, end)`` of a rounded matrix, int8 ``[end - begin, cols]``."""
    if matrix.table is None:
        return _stored(matrix, begin, end)
    if matrix.kind == "int3":
        return _levels_of_octets(matrix, matrix.table, begin, end)
    if matrix.kept:
        indices, kept = _of_records(matrix, begin, end)
        return matrix.table[indices.int()] * kept
    start = begin // 2 * 2
    if matrix.mask is None:
        indices = unpack_nibbles(matrix.values[start // 2 : (end + 1) // 2], end + end % 2 - start)
        return matrix.table[indices[begin - start : end - start].int()]
    assert matrix.row_ptr is not None
    stop = min(end + end % 2, matrix.rows)
    kept = _kept(matrix, start, stop)
    first, last = int(matrix.row_ptr[start // 2]), int(matrix.row_ptr[(stop + 1) // 2])
    indices = unpack_nibbles(matrix.values[first:last], stop - start, kept)
    return (matrix.table[indices.int()] * kept)[begin - start : end - start]


def _levels_of_octets(matrix: StoredMatrix, table: Tensor, begin: int, end: int) -> Tensor:
    start, stop = begin // ROWS, -(-end // ROWS)
    rows = min(stop * ROWS, matrix.rows) - start * ROWS
    indices = unpack_octets(matrix.values[start:stop], rows, matrix.cols)
    return table[indices[begin - start * ROWS : end - start * ROWS].int()]


def _of_records(matrix: StoredMatrix, begin: int, end: int) -> tuple[Tensor, Tensor]:
    start, stop = begin // 2, -(-end // 2)
    rows = slice(begin - 2 * start, end - 2 * start)
    values, kept = spread_records(matrix.values[start:stop], matrix.kind, 2 * (stop - start), matrix.cols)
    return values[rows], kept[rows]

"""Masks that are 2:4 along the rows and along the columns of a matrix, so that its transpose is 2:4 too."""

from __future__ import annotations

from ctypes import c_int32, c_int64, c_void_p
from functools import cache
from itertools import combinations, product
from typing import Any

import torch
from torch import Tensor

from lowdim.core.errors import NumericalError, PatternError
from lowdim.core.native import Library, library

CHUNK = 1 << 14
_NAN = 6
"""``LD_NOT_A_NUMBER`` of ``csrc/lowdim.h``."""


@cache
def tiles() -> Tensor:
    """Return the 4 x 4 tiles with two ones in every row and column, bool [90, 4, 4], in the order of their rows.

    Example:
        >>> tiles().shape, int(tiles().sum((1, 2)).unique())
        (torch.Size([90, 4, 4]), 8)
    """
    rows = [[column in pair for column in range(4)] for pair in combinations(range(4), 2)]
    found = torch.tensor(list(product(rows, repeat=4)))
    return found[(found.sum(1) == 2).all(1)]


def transposable(weight: Tensor, greedy: bool = False) -> Tensor:
    """Return the mask of a matrix that keeps the largest sum of magnitudes, tile by tile.

    Source: FST, arXiv 2404.01847, whose "convolution search" multiplies every tile with all 90. Here the sums of
    pairs of rows are shared among them, on a CPU by a compiled kernel (``csrc/tiles.h``). A sum is
    ((a + b) + (c + d)) + ((e + f) + (g + h)), row after row, in fp32; of equal sums the first tile in the order of
    `tiles` is taken.

    Args:
        weight: [m, n], 4 divides both; any float dtype.
        greedy: go through a tile by magnitude instead and keep what fits; it may leave a place empty.

    Returns:
        bool [m, n].

    Raises:
        PatternError: 4 does not divide the sides.
        NumericalError: the weight holds NaN.

    Example:
        >>> tile = torch.tensor([[9.0, 1, 7, 4], [1, 2, 3, 0], [8, 3, 5, 4], [1, 2, 6, 2]])
        >>> float((tile * transposable(tile)).sum())
        38.0
    """
    if weight.dim() != 2 or weight.shape[0] % 4 or weight.shape[1] % 4:
        raise PatternError(f"transposable 2:4 needs a matrix whose sides 4 divides; got {tuple(weight.shape)}")
    m, n = weight.shape
    if not greedy and weight.device.type == "cpu" and (found := library()):
        wide, kept = weight.detach().float().contiguous(), torch.empty(m, n, dtype=torch.bool)
        if _kernel(found)(m, n, wide.data_ptr(), kept.data_ptr(), torch.get_num_threads()) == _NAN:
            raise _diverged()
        return kept
    cut = weight.detach().abs().float().view(m // 4, 4, n // 4, 4).transpose(1, 2).reshape(-1, 16)
    if bool(cut.isnan().any()):
        raise _diverged()
    kept = torch.cat([(_greedy if greedy else _best)(part) for part in cut.split(CHUNK)])
    return kept.view(m // 4, n // 4, 4, 4).transpose(1, 2).reshape(m, n)


def _diverged() -> NumericalError:
    return NumericalError("a weight holds NaN, so no mask can be chosen: training has diverged")


@cache
def _kernel(found: Library) -> Any:
    return found.bind("ld_tiles", c_int32, c_int64, c_int64, c_void_p, c_void_p, c_int32)


def _best(cut: Tensor) -> Tensor:
    """Return the best masks of tiles [t, 16]: all pairs of two rows are added up once, then 90 times two of these."""
    every, rows = tiles().to(cut.device), cut.view(-1, 4, 4)
    left, right = torch.combinations(torch.arange(4, device=cut.device)).T
    pairs = rows[..., left] + rows[..., right]
    top, bottom = ((pairs[:, r, :, None] + pairs[:, r + 1, None]).flatten(1) for r in (0, 2))
    which = (every[:, :, left] & every[:, :, right]).int().argmax(2)
    sums = top[:, 6 * which[:, 0] + which[:, 1]] + bottom[:, 6 * which[:, 2] + which[:, 3]]
    return every.view(90, 16)[sums.argmax(1)]


def _greedy(cut: Tensor) -> Tensor:
    order = cut.argsort(dim=1, descending=True, stable=True)
    kept = torch.zeros_like(cut, dtype=torch.bool)
    every = torch.arange(len(cut), device=cut.device)
    rows, columns = (torch.zeros(len(cut), 4, dtype=torch.int8, device=cut.device) for _ in range(2))
    for place in order.T:
        row, column = place // 4, place % 4
        fits = (rows[every, row] < 2) & (columns[every, column] < 2)
        kept[every, place] = fits
        rows[every, row] += fits
        columns[every, column] += fits
    return kept

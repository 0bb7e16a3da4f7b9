"""The kernels of sparse training in plain torch: for installs without a compiler, and as a reference. Not fast."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lowdim.core.topk import keep_top

_TOGETHER = 1 << 22  # numbers of an intermediate result


def rows_of(row_ptr: Tensor) -> Tensor:
    """Return the row of every kept value, int64 [kept].

    Example:
        >>> rows_of(torch.tensor([0, 2, 2, 3]))
        tensor([0, 0, 2])
    """
    return torch.repeat_interleave(torch.arange(len(row_ptr) - 1), row_ptr.diff())


def _pieces(row_ptr: Tensor, col: Tensor, batch: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
    rows, together = rows_of(row_ptr), max(1, _TOGETHER // max(1, batch))
    for k in range(0, len(col), together):
        piece = slice(k, k + together)
        yield piece, rows[piece], col[piece].long()


def forward(x: Tensor, values: Tensor, bias: Tensor | None, row_ptr: Tensor, col: Tensor) -> Tensor:
    """Return ``x W^T + bias``, fp32 [batch, rows], for ``x`` [batch, cols]."""
    inputs, y = x.t(), x.new_zeros(len(row_ptr) - 1, len(x))
    for piece, rows, cols in _pieces(row_ptr, col, len(x)):
        y.index_add_(0, rows, values[piece, None] * inputs[cols])
    y = y.t().contiguous()
    return y if bias is None else y.add_(bias)


def input_gradient(g: Tensor, values: Tensor, row_ptr: Tensor, col: Tensor, cols: int) -> Tensor:
    """Return ``g W``, fp32 [batch, cols], for ``g`` [batch, rows]."""
    outputs, d_x = g.t(), g.new_zeros(cols, len(g))
    for piece, rows, columns in _pieces(row_ptr, col, len(g)):
        d_x.index_add_(0, columns, values[piece, None] * outputs[rows])
    return d_x.t().contiguous()


def value_gradient(g: Tensor, x: Tensor, row_ptr: Tensor, col: Tensor) -> Tensor:
    """Return ``g^T x`` at the kept positions, fp32 [kept]."""
    outputs, inputs, d_values = g.t(), x.t(), g.new_empty(len(col))
    for piece, rows, cols in _pieces(row_ptr, col, len(g)):
        d_values[piece] = (outputs[rows] * inputs[cols]).sum(1)
    return d_values


def index(positions: Tensor, rows: int, cols: int) -> tuple[Tensor, Tensor]:
    """Return ``row_ptr`` and ``col`` of ascending flat positions."""
    starts = torch.arange(rows + 1) * cols
    return torch.searchsorted(positions, starts), (positions % max(1, cols)).int()


def move(old: Tensor, keep: Tensor, grown: Tensor) -> tuple[Tensor, Tensor]:
    """Return the positions after a drop and growth, and which value each was before, int32, -1 for none.

    Args:
        old: int64 [kept], ascending.
        keep: bool [kept], what stays.
        grown: int64, ascending, none of which stays.
    """
    new = torch.cat([old[keep], grown]).sort().values
    at = torch.searchsorted(old, new).clamp_(max=max(0, len(old) - 1))
    known = old[at] == new if len(old) else torch.zeros(len(new), dtype=torch.bool)
    return new, torch.where(known, at, -1).int()


def top(x: Tensor, g: Tensor, excluded: Tensor, count: int) -> Tensor:
    """Return the positions of the ``count`` largest ``|g^T x|`` not excluded, ascending, ties by the lowest."""
    rows, cols = g.shape[1], x.shape[1]
    sizes, positions = x.new_empty(0), torch.empty(0, dtype=torch.int64)
    high = max(1, _TOGETHER // max(1, cols))
    for begin in range(0, rows, high):
        tile = (g[:, begin : begin + high].t() @ x).abs_().flatten()
        first = begin * cols
        inside = excluded[(excluded >= first) & (excluded < first + len(tile))] - first
        free = torch.ones(len(tile), dtype=torch.bool)
        free[inside] = False
        sizes = torch.cat([sizes, tile[free]])
        positions = torch.cat([positions, free.nonzero().flatten() + first])
        best = keep_top(sizes, min(count, len(sizes)))
        sizes, positions = sizes[best], positions[best]
    return positions

"""The optimal-brain-surgeon sweep: prune and round column by column, moving each error to those not yet visited.

Weights are held transposed, ``[in, rows]``, so that a column of the layer is contiguous and layers that share an input
are swept together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from lowdim.core.lazy import torch
from lowdim.prune.repair.rounding import Rounding

if TYPE_CHECKING:
    from torch import Tensor

Select: TypeAlias = "Callable[[int, int, Tensor, Tensor], Tensor]"
"""``select(start, end, weights [end - start, rows], diagonal [end - start]) -> kept [end - start, rows]``: the mask of
columns ``start:end``, called when all earlier columns have been compensated for."""


EAGER = 32
"""Columns updated one by one before their errors go to the rest of the matrix as one product."""


def sweep(
    weights: Tensor, inverse_factor: Tensor, select: Select, width: int, rounding: Rounding | None = None
) -> Tensor:
    """Prune, round if asked to, and compensate in place; return the mask.

    For column ``i`` in order: ``q = w_i`` with pruned rows zeroed and the others rounded, ``err = (w_i - q) / U_ii``,
    and ``w_j -= err * U_ij`` for ``j > i``.

    Args:
        weights: ``W^T``, fp32 ``[in, rows]``; becomes the pruned and compensated weights.
        inverse_factor: ``U`` of `lowdim.prune.repair.hessian.Hessian`, ``[in, in]``.
        select: gives the mask of a range of columns from their weights as compensated so far.
        width: how many columns are masked together.
        rounding: rounds the kept weights of every column; ``None`` leaves them as they are.

    Returns:
        Bool ``[in, rows]``, True = kept.

    Example:
        >>> import torch
        >>> from lowdim.prune.repair.hessian import factor
        >>> u = factor(torch.tensor([[2.0, 1.0], [1.0, 2.0]]), 1, 1e-9, "layer").inverse_factor
        >>> w = torch.tensor([[1.0], [3.0]])
        >>> mask = sweep(w, u, lambda a, b, x, d: torch.tensor([[False], [True]])[a:b], 2)
        >>> w.t()
        tensor([[0.0000, 3.5000]])

    Paper: SparseGPT, 2023, arXiv 2301.00774.
    """
    columns = len(weights)
    mask = torch.empty(weights.shape, dtype=torch.bool, device=weights.device)
    diagonal = inverse_factor.diagonal()

    def draw(start: int, end: int) -> None:
        mask[start:end] = select(start, end, weights[start:end], diagonal[start:end])

    span = width if width > EAGER else width * (EAGER // width)
    for start in range(0, columns, span):
        end = min(start + span, columns)
        if width > EAGER:
            draw(start, end)
        for low in range(start, end, EAGER if width > EAGER else span):
            high = min(low + EAGER, end)
            errors = torch.empty_like(weights[low:high])
            for i in range(low, high):
                if width <= EAGER and (i - start) % width == 0:
                    draw(i, min(i + width, columns))
                _settle(i, weights, mask, rounding, errors[i - low])
                _visit(i, high, weights, inverse_factor, errors[i - low])
            weights[high:].addmm_(inverse_factor[low:high, high:].t(), errors, alpha=-1)
    return mask


def _settle(i: int, weights: Tensor, mask: Tensor, rounding: Rounding | None, error: Tensor) -> None:
    """Prune and round column ``i``; ``error`` becomes what it loses."""
    pruned = ~mask[i]
    if rounding is None:
        torch.mul(weights[i], pruned, out=error)
        weights[i].masked_fill_(pruned, 0.0)
        return
    rounded = rounding.round(i, weights[i], mask[i])
    torch.sub(weights[i], rounded, out=error)
    weights[i] = rounded


def _visit(i: int, high: int, weights: Tensor, inverse_factor: Tensor, error: Tensor) -> None:
    """Move the error of column ``i`` to the columns before ``high``."""
    error /= inverse_factor[i, i]
    if i + 1 < high:
        weights[i + 1 : high].addr_(inverse_factor[i, i + 1 : high], error, alpha=-1)

"""Rounding inside a sweep: each column's kept weights go to the grid when it is their turn.

As in `lowdim.prune.repair.sweep` everything is transposed, ``[in, rows]``: a column of the layer is a row here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lowdim.core.lazy import torch
from lowdim.core.packing.codebook import column_importance
from lowdim.core.quantize import Grid, Quantized, decode, encode, fit_table, scales_of, to_levels

if TYPE_CHECKING:
    from torch import Tensor

    from lowdim.prune.bench import Work

Span = tuple[int, int]


def importance(energies: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
    """Return how much each column counts in the choice of a layer's 16 levels, ``[in]``.

    That is the geometric mean of what the inputs say and what the mask says (`column_importance`). The energies alone
    lean too much on the first token, on which some models have inputs a thousand times larger than elsewhere.

    Args:
        energies: sums of squares of every input, ``[in]``.
        weight: ``[out, in]``.
        mask: its kept entries.
    """
    tiny = torch.finfo(torch.float32).tiny
    return (energies / energies.max().clamp_min(tiny) * column_importance(weight, mask)).sqrt()


def round_nearest(work: Work, grid: Grid, energies: Tensor | None) -> None:
    """Round a layer's result to the nearest levels of a grid.

    Args:
        work: the layer.
        grid: bits and columns per group.
        energies: sums of squares of every input, ``[in]``, if they are known.
    """
    result, kept = work.made, work.made != 0
    known = None if energies is None else importance(energies, result, kept)
    work.codes = encode(result, kept, grid, work.least, known)
    rounded = decode(work.codes.levels, work.codes.scales, grid)
    energy = result.double().square().sum()
    lost = (result - rounded).double().square().sum()
    work.rounding = float(lost / energy) if float(energy) > 0 else 0.0
    work.result = rounded


class Rounding:
    """The grid of layers that are swept side by side, and what has been rounded to it.

    Scales and tables are fixed before the sweep, from the final weights of a sweep without rounding: compensation for
    pruned columns lets the others outgrow a scale that fits them beforehand.

    Args:
        grid: bits and columns per group.
        expected: what the weights would become without rounding, fp32 ``[in, rows]``.
        mask: kept entries of it.
        energies: mean square of every input, ``[in]``, or any multiple of it.
        unseen: weights on inputs that are always zero, ``[in, rows]``, zero elsewhere. The sweep sees none of them.
        spans: first and last row of every layer.
        least: smallest scale, see `lowdim.core.quantize.least_scale`.
    """

    def __init__(
        self,
        grid: Grid,
        expected: Tensor,
        mask: Tensor,
        energies: Tensor,
        unseen: Tensor,
        spans: Sequence[Span],
        least: float,
    ) -> None:
        self.grid = grid
        self.unseen = unseen
        self.spans = list(spans)
        weight, kept = (expected + unseen).t(), mask.t()
        self._scales = scales_of(weight, kept, grid, least).t().contiguous()
        self._levels = torch.zeros(expected.shape, dtype=torch.int8, device=expected.device)
        self._lost = torch.zeros(len(weight), dtype=torch.float64, device=expected.device)
        self._whole = torch.zeros_like(self._lost)
        self._tables: list[Tensor | None] = [None] * len(self.spans)
        if grid.entries:
            self._tables = [
                self._fit(weight[a:b], kept[a:b], self._scales[:, a:b].t(), energies) for a, b in self.spans
            ]

    def _fit(self, weight: Tensor, kept: Tensor, scales: Tensor, energies: Tensor) -> Tensor:
        return fit_table(weight, kept, scales, self.grid, importance(energies, weight, kept))

    def round(self, i: int, column: Tensor, kept: Tensor) -> Tensor:
        """Return column ``i`` rounded, fp32 ``[rows]``, zero off the mask; a kept zero stays zero."""
        column, scale = column + self.unseen[i], self._scales[i // self.grid.group].float()
        kept = kept & (column != 0)
        units = torch.where(kept, column / scale, 0.0)
        for (a, b), table in zip(self.spans, self._tables, strict=True):
            self._levels[i, a:b] = to_levels(units[a:b], kept[a:b], table)
        rounded = self._levels[i] * scale
        self._lost += ((column - rounded) * kept).double().square()
        self._whole += (column * kept).double().square()
        return rounded

    def results(self) -> list[tuple[Quantized, float]]:
        """Return every layer's levels and scales ``[out, in]``, and the share of its kept weights' energy lost."""
        return [self._result(a, b, table) for (a, b), table in zip(self.spans, self._tables, strict=True)]

    def _result(self, a: int, b: int, table: Tensor | None) -> tuple[Quantized, float]:
        levels, scales = self._levels[:, a:b].t().contiguous(), self._scales[:, a:b].t().contiguous()
        lost, whole = float(self._lost[a:b].sum()), float(self._whole[a:b].sum())
        return Quantized(levels, scales, table), lost / whole if whole > 0 else 0.0

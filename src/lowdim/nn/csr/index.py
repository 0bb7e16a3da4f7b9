"""Where the kept values of a sparse weight are."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from lowdim.core.errors import LowdimError
from lowdim.nn.csr import fallback
from lowdim.nn.csr.native import kernels, threads

MOST_KEPT = MOST_COLUMNS = 2**31 - 1


@dataclass(frozen=True, eq=False)
class Index:
    """The positions of the kept values of a weight [rows, cols], compressed by rows.

    Attributes:
        shape: (rows, cols) of the weight.
        row_ptr: int64 [rows + 1], where the values of a row begin.
        col: int32 [kept], their columns, ascending within a row.
        cuts: int32 [panels - 1, rows], how many columns of a row lie before panel 1, 2, ...; what lets a product
            go through the columns in runs that fit a core's cache.

    Example:
        >>> index = Index.of(torch.tensor([1, 3, 5]), (2, 3))
        >>> index.row_ptr, index.col
        (tensor([0, 1, 3]), tensor([1, 0, 2], dtype=torch.int32))
        >>> index.positions()
        tensor([1, 3, 5])
    """

    shape: tuple[int, int]
    row_ptr: Tensor
    col: Tensor
    cuts: Tensor

    @classmethod
    def of(cls, positions: Tensor, shape: tuple[int, int]) -> Index:
        """Compress flat positions ``row * cols + col``, int64, strictly ascending.

        Raises:
            LowdimError: positions beyond the weight, twice, or out of order, or a weight too large.
        """
        rows, cols = shape
        positions = _checked(positions, shape)
        found = kernels()
        if found is None:
            return cls._cut(shape, *fallback.index(positions, rows, cols))
        row_ptr = torch.empty(rows + 1, dtype=torch.int64)
        col = torch.empty(len(positions), dtype=torch.int32)
        found.index(rows, cols, positions.data_ptr(), len(positions), row_ptr.data_ptr(), col.data_ptr())
        return cls._cut(shape, row_ptr, col)

    @classmethod
    def stored(cls, shape: tuple[int, int], row_ptr: Tensor, col: Tensor) -> Index:
        """Take ``row_ptr`` and ``col`` of unknown origin.

        Raises:
            LowdimError: they do not describe a weight of this shape.
        """
        rows, cols = shape
        sound = (
            (row_ptr.dtype, col.dtype) == (torch.int64, torch.int32)
            and (row_ptr.shape, col.shape) == ((rows + 1,), (len(col),))
            and int(row_ptr[0]) == 0
            and int(row_ptr[-1]) == len(col)
            and bool((row_ptr.diff() >= 0).all())
            and (not len(col) or (int(col.min()) >= 0 and int(col.max()) < cols))
        )
        if not sound:
            raise LowdimError(f"row_ptr and col are not the index of a weight of shape {shape}")
        positions = fallback.rows_of(row_ptr) * cols + col
        return cls.of(positions, shape)

    @classmethod
    def _cut(cls, shape: tuple[int, int], row_ptr: Tensor, col: Tensor) -> Index:
        found = kernels()
        if found is None:
            return cls(shape, row_ptr, col, torch.empty(0, shape[0], dtype=torch.int32))
        panels = found.panels(*shape, len(col))
        cuts = torch.empty(panels - 1, shape[0], dtype=torch.int32)
        found.cuts(*shape, row_ptr.data_ptr(), col.data_ptr(), panels, cuts.data_ptr())
        return cls(shape, row_ptr, col, cuts)

    @property
    def kept(self) -> int:
        """How many values there are."""
        return len(self.col)

    def positions(self) -> Tensor:
        """Return the flat positions, int64 [kept], ascending."""
        return fallback.rows_of(self.row_ptr).mul_(self.shape[1]).add_(self.col)

    def move(self, keep: Tensor, grown: Tensor) -> tuple[Index, Tensor]:
        """Drop and grow in one pass.

        Args:
            keep: bool [kept], what stays.
            grown: int64, ascending, positions that none of the staying values has.

        Returns:
            The new index, and for each of its values which one it was before, int32; -1 for none.

        Raises:
            LowdimError: ``grown`` is out of order, beyond the weight, or holds what stays.
        """
        grown = _checked(grown, self.shape)
        if keep.shape != (self.kept,) or keep.dtype != torch.bool:
            raise LowdimError(f"keep must be bool [{self.kept}], got {keep.dtype} {list(keep.shape)}")
        found = kernels()
        if found is None:
            positions, source = fallback.move(self.positions(), keep, grown)
            return Index.of(positions, self.shape), source
        count = int(keep.sum()) + len(grown)
        if count > MOST_KEPT:
            raise LowdimError(f"{count} kept values are more than a layer can hold, {MOST_KEPT}")
        keep, row_ptr = keep.contiguous(), torch.empty_like(self.row_ptr)
        col, source = (torch.empty(count, dtype=torch.int32) for _ in range(2))
        old = self.row_ptr.data_ptr(), self.col.data_ptr(), keep.data_ptr()
        new = row_ptr.data_ptr(), col.data_ptr(), source.data_ptr()
        found.move(*self.shape, *old, grown.data_ptr(), len(grown), *new, count)
        return self._cut(self.shape, row_ptr, col), source

    def top_gradient(self, x: Tensor, g: Tensor, excluded: Tensor, count: int) -> Tensor:
        """Return the positions of the largest ``|g^T x|``, int64 [count], ascending; ties by the lowest position.

        The dense gradient is computed in tiles of which none is kept; memory is in proportion to ``count``.

        Args:
            x: inputs, fp32 [batch, cols].
            g: gradient of the outputs, fp32 [batch, rows].
            excluded: int64, ascending, positions that are out.
            count: how many.

        Raises:
            LowdimError: fewer than ``count`` positions are free.
        """
        free = prod(self.shape) - len(excluded)
        if not 0 <= count <= free:
            raise LowdimError(f"{count} positions were asked for, {free} are free")
        found = kernels()
        if found is None:
            return fallback.top(x, g, excluded, count)
        x, g, excluded = x.contiguous(), g.contiguous(), excluded.contiguous()
        chosen = torch.empty(count, dtype=torch.int64)
        factors = x.data_ptr(), self.shape[1], g.data_ptr(), self.shape[0], len(x)
        out = excluded.data_ptr(), len(excluded), count, chosen.data_ptr()
        found.top(*self.shape, *factors, *out, threads())
        return chosen


def _checked(positions: Tensor, shape: tuple[int, int]) -> Tensor:
    if positions.dtype != torch.int64 or positions.dim() != 1 or positions.device.type != "cpu":
        raise LowdimError(f"positions must be int64 [kept] on the CPU, got {positions.dtype} {list(positions.shape)}")
    if shape[1] > MOST_COLUMNS or len(positions) > MOST_KEPT or prod(shape) >= 2**63:
        raise LowdimError(f"a weight of shape {shape} with {len(positions)} values is more than a layer can hold")
    ascending = bool((positions.diff() > 0).all())
    if len(positions) and (not ascending or int(positions[0]) < 0 or int(positions[-1]) >= prod(shape)):
        raise LowdimError(f"positions must ascend, each once, from 0 to {prod(shape) - 1} at most")
    return positions.contiguous()

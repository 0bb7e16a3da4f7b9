"""Rounding of kept weights to a few bits: integer levels times one scale per row and group of columns.

A weight ``w`` of row ``r`` and group ``g`` becomes ``level * scale[r, g]``, where the level is an integer in
``[-127, 127]``. With 8 bits any level will do; with 4 or 3 bits a matrix makes do with the 16 or 8 levels of a table
fitted to it, so that a stored code is an index. A level of 0 means a pruned weight and nothing else: a kept weight
never rounds to it, and so the mask is never touched. A matrix without a mask has no such rule; 0 is in its table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from lowdim.core.errors import LowdimError, NumericalError, suggest
from lowdim.core.lazy import torch
from lowdim.core.packing.codebook import LARGEST, Moments, column_importance

if TYPE_CHECKING:
    from torch import Tensor

GROUPS = (64, 128)
NAMES = {"int8": 8, "int4": 4, "int3": 3}
_SAMPLED = 1 << 22
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Grid:
    """How finely weights are rounded.

    Args:
        bits: 8, 4 or 3, per stored code.
        group: columns that share a scale, 64 or 128.

    Raises:
        LowdimError: another number.

    Example:
        >>> Grid.of("int4").name, Grid(8, 128).groups(300), Grid(3).entries
        ('int4', 3, 8)
    """

    bits: int
    group: int = 64

    def __post_init__(self) -> None:
        if self.bits not in NAMES.values():
            raise LowdimError(f"bits must be 8, 4 or 3, got {self.bits!r}.")
        if self.group not in GROUPS:
            raise LowdimError(f"group must be 64 or 128 columns, got {self.group!r}.")

    @classmethod
    def of(cls, name: str, group: int = 64) -> Grid:
        """Return the grid called "int8", "int4" or "int3"."""
        if name not in NAMES:
            raise LowdimError(f"a grid is int8, int4 or int3, got {name!r}. {suggest(name, NAMES)}")
        return cls(NAMES[name], group)

    @property
    def name(self) -> str:
        """The grid's name: int8, int4 or int3."""
        return f"int{self.bits}"

    @property
    def entries(self) -> int:
        """Levels of a matrix's table: 16 or 8; 0 with 8 bits, which need none."""
        return 0 if self.bits == 8 else 1 << self.bits

    def groups(self, cols: int) -> int:
        """Return how many scales a row of so many columns has."""
        return -(-cols // self.group)


class Quantized(NamedTuple):
    """A rounded matrix.

    Attributes:
        levels: int8 ``[rows, cols]``; 0 where the mask has pruned.
        scales: bf16 ``[rows, groups]``; 0 for a group without a kept weight.
        table: int8 ``[16]`` or ``[8]``, the levels that occur, ascending; ``None`` with 8 bits.
    """

    levels: Tensor
    scales: Tensor
    table: Tensor | None


def least_scale(dtype: Any) -> float:
    """Return the smallest scale at which no kept weight rounds to zero in a model of this dtype.

    Example:
        >>> import torch
        >>> least_scale(torch.float16) == 2.0**-24, least_scale(torch.bfloat16) == 2.0**-126
        (True, True)
    """
    info = torch.finfo(dtype)
    return max(info.smallest_normal * info.eps if dtype == torch.float16 else 0.0, 2.0**-126)


def scales_of(weight: Tensor, mask: Tensor | None, grid: Grid, least: float = 2.0**-126) -> Tensor:
    """Return each group's scale: the largest kept magnitude / 127, rounded up to bf16.

    Args:
        weight: floating point ``[rows, cols]``.
        mask: kept entries, bool of the same shape; ``None`` for a dense matrix.
        grid: the columns per group.
        least: smallest scale of a group that keeps a weight, see `least_scale`.

    Returns:
        bf16 ``[rows, groups]``, 0 for a group that keeps nothing (dense: that is all zero).

    Raises:
        ValueError: weight or mask has another shape or type.
        NumericalError: a kept weight is NaN or Inf.

    Example:
        >>> import torch
        >>> scales_of(torch.tensor([[1.0, -127.0], [3.0, 9.0]]), torch.tensor([[True, True], [False, False]]), Grid(8))
        tensor([[1.],
                [0.]], dtype=torch.bfloat16)
    """
    _check(weight, mask)
    made = [_scales(weight[some], None if mask is None else mask[some], grid, least) for some in _chunks(weight)]
    return torch.cat(made) if made else weight.new_zeros(0, grid.groups(weight.shape[1]), dtype=torch.bfloat16)


def _scales(weight: Tensor, mask: Tensor | None, grid: Grid, least: float) -> Tensor:
    magnitude = weight.float().abs() if mask is None else (weight.float() * mask).abs()
    largest = _by_group(magnitude, grid.group).amax(2)
    if not bool(torch.isfinite(largest).all()):
        raise NumericalError("a weight to be rounded is NaN or Inf")
    some = largest > 0 if mask is None else _by_group(mask, grid.group).any(2)
    scales = round_up(largest / LARGEST, largest).clamp_min(least)
    return torch.where(some, scales, torch.zeros((), dtype=scales.dtype, device=scales.device))


def round_up(quotient: Tensor, largest: Tensor) -> Tensor:
    """Return the bf16 next to ``largest / 127`` that is not below it: no level then leaves [-127, 127].

    Example:
        >>> import torch
        >>> largest = torch.tensor([127.0, 127.1])
        >>> round_up(largest / 127, largest)
        tensor([1.0000, 1.0078], dtype=torch.bfloat16)
    """
    scales = quotient.to(torch.bfloat16)
    short = scales.float() * LARGEST < largest
    return (scales.view(torch.int16) + short.to(torch.int16)).view(torch.bfloat16)


def to_levels(units: Tensor, mask: Tensor | None, table: Tensor | None) -> Tensor:
    """Round weights, given in units of their scales, to the nearest level.

    Args:
        units: fp32, any shape; beyond [-127, 127] they are clamped.
        mask: kept entries; a kept weight gets at least the level 1 of its sign, and +1 if it is zero.
        table: the levels of 4 or 3 bits, of which the nearest is taken; ``None`` for 8 bits.

    Returns:
        int8 of the same shape, 0 off the mask.

    Example:
        >>> import torch
        >>> to_levels(torch.tensor([0.2, -0.2, 2.5, 300.0]), torch.tensor([True, True, True, False]), None)
        tensor([ 1, -1,  2,  0], dtype=torch.int8)
    """
    if table is not None:
        middles = (table[1:].float() + table[:-1].float()) / 2
        levels = table[torch.bucketize(units, middles, out_int32=True)]
    else:
        rounded = units.round()
        if mask is not None:
            rounded = rounded.abs_().clamp_min_(1).copysign_(units + 0.0)
        levels = rounded.clamp_(-LARGEST, LARGEST).to(torch.int8)
    return levels if mask is None else levels * mask


def fit_table(
    weight: Tensor, mask: Tensor | None, scales: Tensor, grid: Grid, importance: Tensor | None = None
) -> Tensor:
    """Return the 16 (8 with 3 bits) levels that lose least.

    They minimise ``sum h_j (w_ij - scale * nearest level)^2`` exactly.

    A big matrix is sampled, every n-th row of it.

    Args:
        weight: floating point ``[rows, cols]``.
        mask: kept entries, for which 0 is no level; without one 0 is among the levels.
        scales: of `scales_of`.
        grid: the bits, 4 or 3, and the columns per group.
        importance: ``h``, the mean square of every column's input, or any multiple of it. Where it is not given it is
            estimated from what the mask keeps, see `lowdim.core.packing.codebook.column_importance`; 1 without a mask.

    Returns:
        int8 ``[16]`` or ``[8]``, ascending and distinct.

    Example:
        >>> import torch
        >>> weight = torch.arange(-8.0, 8.0).reshape(1, 16) * 15
        >>> fit_table(weight, None, torch.ones(1, 1, dtype=torch.bfloat16), Grid(4)).tolist()[6:10]
        [-30, -15, 0, 15]
    """
    _check(weight, mask)
    if importance is None:
        importance = torch.ones(weight.shape[1]) if mask is None else column_importance(weight, mask)
    most = importance.sum().clamp_min(torch.finfo(torch.float32).tiny)  # of no columns too, unlike a maximum
    roots = (importance / most).sqrt().to(weight.device)
    step = max(1, weight.numel() // _SAMPLED)
    sums = Moments()
    for rows in _chunks(weight[::step]):
        some = slice(rows.start * step, rows.stop * step, step)
        scale = spread(scales[some], weight.shape[1], grid.group)
        units, counted = _units(weight[some], scale), scale > 0 if mask is None else mask[some]
        sums.add(units[counted], (scale * roots)[counted])
    return sums.best_levels(mask is None, grid.entries).to(weight.device)


def encode(
    weight: Tensor, mask: Tensor | None, grid: Grid, least: float = 2.0**-126, importance: Tensor | None = None
) -> Quantized:
    """Round every weight to the nearest level of its group; kept ones stay nonzero.

    Args:
        weight: floating point ``[rows, cols]``.
        mask: kept entries, bool of the same shape; ``None`` for a dense matrix, whose zeros stay exact.
        grid: bits and columns per group.
        least: see `least_scale`.
        importance: see `fit_table`.

    Raises:
        ValueError: weight or mask has another shape or type.
        NumericalError: a weight is NaN or Inf.

    Example:
        >>> import torch
        >>> made = encode(torch.tensor([[254.0, -3.1, 0.2]]), torch.tensor([[True, True, True]]), Grid(8))
        >>> made.levels.tolist(), made.scales.tolist(), decode(made.levels, made.scales, Grid(8)).tolist()
        ([[127, -2, 1]], [[2.0]], [[254.0, -4.0, 2.0]])
    """
    scales = scales_of(weight, mask, grid, least)
    table = fit_table(weight, mask, scales, grid, importance) if grid.entries else None
    return Quantized(nearest(weight, mask, grid, scales, table), scales, table)


def nearest(weight: Tensor, mask: Tensor | None, grid: Grid, scales: Tensor, table: Tensor | None) -> Tensor:
    """Return the level nearest to every weight, given the scales and the table: int8 ``[rows, cols]``, see `encode`.

    Example:
        >>> import torch
        >>> nearest(torch.tensor([[254.0, -3.1]]), None, Grid(8), torch.tensor([[2.0]]).bfloat16(), None)
        tensor([[127,  -2]], dtype=torch.int8)
    """
    levels = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    for some in _chunks(weight):
        units = _units(weight[some], spread(scales[some], weight.shape[1], grid.group))
        levels[some] = to_levels(units, None if mask is None else mask[some], table)
    return levels


def decode(levels: Tensor, scales: Tensor, grid: Grid) -> Tensor:
    """Return ``level * scale``, which fp32 holds exactly, ``[rows, cols]``."""
    return levels.float() * spread(scales, levels.shape[1], grid.group)


def spread(scales: Tensor, cols: int, group: int) -> Tensor:
    """Return every column's scale, fp32 ``[rows, cols]``, from every group's."""
    return scales.float().repeat_interleave(group, 1)[:, :cols]


def indices(levels: Tensor, table: Tensor) -> Tensor:
    """Return where in the table each level stands, uint8; 0 for a level of 0 that is not in it.

    Example:
        >>> import torch
        >>> table = torch.tensor([*range(-8, 0), *range(1, 9)], dtype=torch.int8)
        >>> indices(torch.tensor([[-8, 0, 8]], dtype=torch.int8), table).tolist()
        [[0, 0, 15]]
    """
    where = torch.zeros(256, dtype=torch.uint8, device=levels.device)
    where[table.long() + 128] = torch.arange(len(table), dtype=torch.uint8, device=levels.device)
    return where[(levels.to(torch.int16) + 128).int()]


def _units(weight: Tensor, scale: Tensor) -> Tensor:
    """Divide by the scales; where there is none, all is zero."""
    return torch.where(scale > 0, weight.float() / scale, 0.0)


def _by_group(matrix: Tensor, group: int) -> Tensor:
    """View ``[rows, cols]``, padded with zeros, as ``[rows, groups, group]``."""
    rows, cols = matrix.shape
    groups = -(-cols // group)
    if cols % group:
        matrix = torch.nn.functional.pad(matrix, (0, groups * group - cols))
    return matrix.reshape(rows, groups, group)


def _chunks(matrix: Tensor) -> list[slice]:
    rows, cols = matrix.shape
    step = max(1, _CHUNK // max(cols, 1))
    return [slice(at, min(at + step, rows)) for at in range(0, rows, step)]


def _check(weight: Tensor, mask: Tensor | None) -> None:
    if weight.ndim != 2 or not weight.is_floating_point():
        raise ValueError(f"weight must be a floating-point matrix, got {weight.dtype} {weight.ndim}-D")
    if mask is not None and (mask.dtype != torch.bool or mask.shape != weight.shape):
        raise ValueError(f"mask must be bool {tuple(weight.shape)}, got {mask.dtype} of shape {tuple(mask.shape)}")

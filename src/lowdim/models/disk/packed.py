"""The packed form of a weight: one bit per weight for where, the nonzeros for what; or the codes of all of it.

A weight is stored as two to four tensors:

* ``mask``: int64 ``[rows, ceil(cols / 64)]``; bit j of word c stands for column 64 c + j, least bit first;
* ``values``: the nonzeros in row order, 1-D, in the weight's own dtype: bit by bit, a kept ``-0.0`` survives;
* of a rounded weight (see `lowdim.core.quantize`) the values are codes, int8 levels or 4-bit indices by row
  pairs (`lowdim.core.packing.nibbles`), with ``scales`` bf16 ``[rows, groups]`` and, for 4 bits, ``table`` int8
  ``[16]``.

A rounded weight may also do without the mask: ``values`` then holds a code for every weight, as a matrix: int8
``[rows, cols]``; 4-bit indices ``[ceil(rows / 2), cols]``; or 3-bit ones (`lowdim.core.packing.octets`), whose
``table`` is int8 ``[8]``. There the level 0 is one like any other.

The kernels take these tensors as they are. A weight of more than two dimensions is taken as
``[all but the last, last]``, each of its matrices with a table of its own. ``transposed``: the stored matrix is
the transpose of the weight, so that scales run along the inputs of a layer that keeps ``[in, out]``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lowdim.core.errors import CheckpointError
from lowdim.core.packing.bits import pack_bits, unpack_bits, words_per_row
from lowdim.core.packing.codebook import table_of
from lowdim.core.packing.nibbles import nibble_bytes, pack_nibbles, unpack_nibbles
from lowdim.core.packing.octets import octet_shape, pack_octets, unpack_octets
from lowdim.core.quantize import Grid, indices, spread

Counts = np.ndarray[tuple[int], np.dtype[np.int64]]
_WORD = 64
_CHUNK = 8 << 20
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Form:
    """What a file's header says of a packed weight.

    Attributes:
        shape: of the weight.
        dtype: of the weight; that of its values, unless these are codes.
        grid: how it was rounded; ``None`` if it was not.
        transposed: the stored matrix is the transpose of the weight.
        masked: only what a mask names has a code; ``False``: every weight has one.
        rank: the inner side of two matrices that the weight is the product of
            (`lowdim.models.disk.factors.Factors`); ``None`` if it is none.

    Raises:
        CheckpointError: a weight of 3 bits with a mask, or one without that was not rounded.

    Example:
        >>> Form((8, 64), torch.bfloat16, Grid(3), masked=False).parts
        ('values', 'scales', 'table')
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    grid: Grid | None = None
    transposed: bool = False
    masked: bool = True
    rank: int | None = None

    def __post_init__(self) -> None:
        if not self.masked and self.grid is None:
            raise CheckpointError("only a rounded weight is stored without a mask; leave masked=False out")
        if self.masked and self.grid is not None and self.grid.bits == 3:
            raise CheckpointError("codes of 3 bits are stored without a mask only: masked=False, or another grid")

    @property
    def rows(self) -> int:
        """Rows of the stored matrix."""
        return self.shape[1] if self.transposed else math.prod(self.shape[:-1])

    @property
    def cols(self) -> int:
        """Columns of the stored matrix."""
        return self.shape[0] if self.transposed else self.shape[-1]

    @property
    def words(self) -> int:
        """Words of a row of the mask."""
        return -(-self.cols // _WORD)

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the tensors that a weight is stored as."""
        if self.rank is not None:
            return ("a", "b")
        rounded = () if self.grid is None else ("scales", "table")[: 1 + (self.grid.entries > 0)]
        return (*(("mask",) if self.masked else ()), "values", *rounded)

    @property
    def table_shape(self) -> tuple[int, ...]:
        """Shape of the tables: one for a matrix, ``[matrices, entries]`` for more dimensions."""
        assert self.grid is not None
        entries = self.grid.entries
        return (entries,) if len(self.shape) == 2 else (math.prod(self.shape[:-2]), entries)

    @property
    def codes_shape(self) -> tuple[int, int]:
        """Shape of the values of a weight without a mask."""
        assert self.grid is not None
        if self.grid.bits == 3:
            return octet_shape(self.rows, self.cols)
        return (self.rows if self.grid.bits == 8 else -(-self.rows // 2), self.cols)


@dataclass(frozen=True)
class Packed:
    """A packed weight, its tensors as they are stored; see the module."""

    form: Form
    mask: Tensor | None
    values: Tensor
    scales: Tensor | None = None
    table: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors to store by the last parts of their names."""
        return {part: getattr(self, part) for part in self.form.parts}

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def check(self) -> Counts:
        """Check completely that the tensors fit each other and the form; return how many values each row has."""
        form, grid = self.form, self.form.grid
        if grid is not None and not form.masked:
            return self._check_dense(grid)
        assert self.mask is not None
        counts = _row_counts(self.mask, form)
        if grid is None:
            _expect("values", self.values, form.dtype, (int(counts.sum()),), "bits set")
        else:
            self._check_scales(grid)
            size = int(counts.sum()) if grid.bits == 8 else nibble_bytes(counts)
            _expect("codes", self.values, _code_type(grid), (size,), "bytes")
            if grid.entries:
                self._check_table()
            elif bool(((self.values == 0) | (self.values == -128)).any()):
                raise CheckpointError("a code is 0 or -128; codes are -127 to 127, and a kept one is not 0")
        return counts

    def _check_dense(self, grid: Grid) -> Counts:
        self._check_scales(grid)
        _expect("codes", self.values, _code_type(grid), self.form.codes_shape)
        if grid.entries:
            self._check_table()
        elif bool((self.values == -128).any()):
            raise CheckpointError("a code is -128; codes are -127 to 127")
        return np.full(self.form.rows, self.form.cols, dtype=np.int64)

    def _check_scales(self, grid: Grid) -> None:
        form, scales = self.form, self.scales
        assert scales is not None
        _expect("scales", scales, torch.bfloat16, (form.rows, grid.groups(form.cols)))
        if not bool((torch.isfinite(scales) & (scales >= 0)).all()):
            raise CheckpointError("a scale is negative, NaN or Inf")
        if self.mask is None:
            return
        step = grid.group // _WORD
        words = torch.nn.functional.pad(self.mask != 0, (0, -form.words % step))
        if not torch.equal(words.reshape(*scales.shape, step).any(2), scales > 0):
            raise CheckpointError("a scale is zero though its group keeps a weight, or the other way round")

    def _check_table(self) -> None:
        assert self.table is not None
        _expect("table", self.table, torch.int8, self.form.table_shape)
        ascending = bool((self.table.int().diff(dim=-1) > 0).all())
        masked = self.form.masked
        if not ascending or bool((self.table == -128).any()) or (masked and bool((self.table == 0).any())):
            entries, no_zero = self.form.table_shape[-1], " and no 0" if masked else ""
            raise CheckpointError(f"the table must hold {entries} ascending levels from -127 to 127{no_zero}")

    def levels(self) -> Tensor:
        """Return the levels of a rounded weight as a matrix, int8 ``[rows, cols]``, 0 where it was pruned."""
        counts, form, grid = self.check(), self.form, self.form.grid
        assert grid is not None
        if not grid.entries:
            return self.values.clone() if self.mask is None else _scatter(self.mask, self.values, counts, form)
        assert self.table is not None
        mask = None if self.mask is None else unpack_bits(_padded(self.mask, form.cols), form.cols)
        codes = _codes_in(self.values, form, mask)
        levels = torch.empty(codes.shape, dtype=torch.int8)
        for table, some in zip(self.table.reshape(-1, grid.entries), _matrices(form), strict=True):
            levels[some] = table[codes[some].int()]
        return levels if mask is None else levels.mul_(mask)

    def weight(self) -> Tensor:
        """Return the weight in its own dtype; a rounded one is ``level * scale`` in fp32, then cast."""
        form = self.form
        if form.grid is None:
            assert self.mask is not None
            return _scatter(self.mask, self.values, self.check(), form).reshape(form.shape)
        levels, scales = self.levels(), self.scales
        assert scales is not None
        made = torch.empty(levels.shape, dtype=form.dtype)
        for some in _row_chunks(*levels.shape):
            made[some] = levels[some] * spread(scales[some], form.cols, form.grid.group)
        return made.t().contiguous() if form.transposed else made.reshape(form.shape)


def bits_of(weight: Tensor) -> Tensor:
    """View floating-point values as integers of the same width, for comparisons of bit patterns."""
    return weight.detach().cpu().contiguous().view(_INTEGERS[weight.dtype.itemsize])


def kept(weight: Tensor) -> Tensor:
    """Return the mask that a stored weight carries: True wherever its bits are not those of +0.0.

    Example:
        >>> kept(torch.tensor([[0.0, -0.0, 2.0]])).tolist()
        [[False, True, True]]
    """
    return bits_of(weight) != 0


def pack(weight: Tensor) -> Packed:
    """Split a weight into mask and values; nothing is lost.

    Args:
        weight: floating point, ``[..., cols]``.

    Raises:
        ValueError: the weight has no dimension or is not floating point.

    Example:
        >>> made = pack(torch.tensor([[0.0, 1.5, 0.0, 0.0], [0.0, 0.0, 0.0, 2.0]]))
        >>> made.mask.tolist(), made.values.tolist()
        ([[2], [8]], [1.5, 2.0])
        >>> made.weight().tolist()
        [[0.0, 1.5, 0.0, 0.0], [0.0, 0.0, 0.0, 2.0]]
    """
    if weight.ndim == 0 or not weight.is_floating_point():
        raise ValueError(
            f"weight must be floating point with at least one dimension, got {weight.dtype} {weight.ndim}-D"
        )
    mask, values = _gather(bits_of(weight).reshape(-1, weight.shape[-1]))
    return Packed(Form(tuple(weight.shape), weight.dtype), mask, values.view(weight.dtype))


def pack_levels(levels: Tensor, scales: Tensor, form: Form) -> Packed:
    """Pack a rounded weight.

    Args:
        levels: int8 ``[rows, cols]`` of the stored matrix, 0 where it was pruned; with 4 bits each matrix has at most
            16 nonzero levels. Without a mask 0 is a level like others: at most 16 of them, or 8 with 3 bits.
        scales: bf16 ``[rows, groups]``; with a mask, those of groups that keep nothing are stored as 0.
        form: of the weight.

    Raises:
        ValueError: a matrix has more levels than its table has entries.

    Example:
        >>> form = Form((1, 3), torch.float32, Grid(8))
        >>> made = pack_levels(torch.tensor([[5, 0, -7]], dtype=torch.int8), torch.ones(1, 1).bfloat16() / 2, form)
        >>> made.mask.tolist(), made.values.tolist(), made.weight().tolist()
        ([[5]], [5, -7], [[2.5, 0.0, -3.5]])
        >>> dense = Form((1, 3), torch.float32, Grid(3), masked=False)
        >>> made = pack_levels(torch.tensor([[5, 0, -7]], dtype=torch.int8), torch.ones(1, 1).bfloat16() / 2, dense)
        >>> made.table.tolist(), made.weight().tolist()
        ([-7, -3, -2, -1, 0, 1, 2, 5], [[2.5, 0.0, -3.5]])
    """
    assert form.grid is not None
    if not form.masked:
        return _pack_all(levels.cpu(), scales.cpu(), form, form.grid)
    mask, values = _gather(levels.cpu())
    step = form.grid.group // _WORD
    words = torch.nn.functional.pad(mask != 0, (0, -form.words % step)).reshape(*scales.shape, step)
    scales = scales.cpu() * words.any(2)
    if not form.grid.entries:
        return Packed(form, mask, values.view(torch.int8), scales)
    codes, tables = _indexed(levels.cpu(), form, form.grid)
    return Packed(form, mask, pack_nibbles(codes, levels.cpu() != 0), scales, tables)


def _pack_all(levels: Tensor, scales: Tensor, form: Form, grid: Grid) -> Packed:
    """Pack a rounded weight without a mask."""
    if not grid.entries:
        return Packed(form, None, levels.contiguous(), scales)
    codes, tables = _indexed(levels, form, grid)
    return Packed(form, None, pack_octets(codes) if grid.bits == 3 else pack_nibbles(codes), scales, tables)


def _indexed(levels: Tensor, form: Form, grid: Grid) -> tuple[Tensor, Tensor]:
    """Return where in its matrix's table each level stands, and the tables."""
    codes, tables = torch.empty(levels.shape, dtype=torch.uint8), torch.empty(form.table_shape, dtype=torch.int8)
    for table, some in zip(tables.view(-1, grid.entries), _matrices(form), strict=True):
        table.copy_(table_of(levels[some], grid.entries, zero=not form.masked))
        codes[some] = indices(levels[some], table)
    return codes, tables


def _codes_in(values: Tensor, form: Form, mask: Tensor | None) -> Tensor:
    """Undo the packing of indices: uint8 ``[rows, cols]``."""
    if form.grid is not None and form.grid.bits == 3:
        return unpack_octets(values, form.rows, form.cols)
    return unpack_nibbles(values, form.rows, mask)


def _code_type(grid: Grid) -> torch.dtype:
    return torch.uint8 if grid.entries else torch.int8


def _matrices(form: Form) -> list[slice]:
    """Return the rows of each matrix of a weight."""
    count = math.prod(form.table_shape[:-1])
    step = form.rows // max(count, 1)
    return [slice(i * step, (i + 1) * step) for i in range(count)]


def packed_bytes(weight: Tensor) -> int:
    """Bytes that `pack` would give, header not counted."""
    rows, cols = weight.numel() // max(weight.shape[-1], 1), weight.shape[-1]
    return 8 * rows * math.ceil(cols / _WORD) + int(torch.count_nonzero(bits_of(weight))) * weight.dtype.itemsize


def becomes_smaller(weight: Tensor) -> bool:
    """Tell whether a weight takes fewer bytes packed."""
    return packed_bytes(weight) < weight.numel() * weight.dtype.itemsize


def _gather(bits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the words and the nonzeros of an integer matrix."""
    rows, cols = bits.shape
    mask = torch.zeros(rows, math.ceil(cols / _WORD), dtype=torch.int64)
    parts = [np.empty(0, bits.numpy().dtype)]
    for some in _row_chunks(rows, cols):
        nonzero = bits[some] != 0
        mask[some] = pack_bits(nonzero)[:, : mask.shape[1]]
        parts.append(bits[some].numpy().reshape(-1)[np.flatnonzero(nonzero.numpy())])  # faster than by mask
    return mask, torch.from_numpy(np.concatenate(parts))


def _scatter(mask: Tensor, values: Tensor, counts: Counts, form: Form) -> Tensor:
    """Undo `_gather`: the matrix, in the dtype of the values."""
    starts = np.concatenate([[0], np.cumsum(counts)])
    source = bits_of(values).numpy() if values.is_floating_point() else values.numpy()
    matrix = torch.zeros(form.rows, form.cols, dtype=values.dtype)
    target = matrix.view(_INTEGERS[values.dtype.itemsize]) if values.is_floating_point() else matrix
    for some in _row_chunks(form.rows, form.cols):
        places = np.flatnonzero(unpack_bits(_padded(mask[some], form.cols), form.cols).numpy())
        target.numpy()[some].reshape(-1)[places] = source[starts[some.start] : starts[min(some.stop, form.rows)]]
    return matrix


def _padded(mask: Tensor, cols: int) -> Tensor:
    words = torch.zeros(mask.shape[0], words_per_row(cols), dtype=torch.int64)
    words[:, : mask.shape[1]] = mask
    return words


def _row_chunks(rows: int, cols: int) -> Iterator[slice]:
    step = max(1, _CHUNK // max(cols, 1))
    return (slice(at, at + step) for at in range(0, rows, step))


def _expect(what: str, tensor: Tensor, dtype: torch.dtype, shape: Sequence[int], why: str = "") -> None:
    if tensor.dtype == dtype and tuple(tensor.shape) == tuple(shape):
        return
    name = str(dtype).removeprefix("torch.")
    raise CheckpointError(
        f"the {what} must be {name} {list(shape)}, got {str(tensor.dtype).removeprefix('torch.')} "
        f"{list(tensor.shape)}" + (f": the mask has {shape[0]} {why}" if why else "")
    )


def _row_counts(mask: Tensor, form: Form) -> Counts:
    """Check a mask; return each row's nonzeros."""
    _expect("mask", mask, torch.int64, (form.rows, form.words))
    words = mask.contiguous().numpy()
    spare = form.words * _WORD - form.cols
    if spare and words.size and (words[:, -1].view(np.uint64) >> np.uint64(_WORD - spare)).any():
        raise CheckpointError(f"the mask has bits beyond column {form.cols}")
    counts: Counts = np.bitwise_count(words.view(np.uint64)).sum(axis=1, dtype=np.int64)
    return counts

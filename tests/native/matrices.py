"""Matrices of every kind for the kernels, packed by numpy alone, and the products that they should give."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lowdim.core.native import Library, MatrixStruct

FP32, BF16, INT8, INT4, INT3 = KINDS = range(5)
NAMES = ("fp32", "bf16", "int8", "int4", "int3")
PACKED = range(INT3)  # kinds that are stored with a mask too
FORMS = [*((kind, True) for kind in KINDS), *((kind, False) for kind in PACKED)]  # and whether dense
RECORDED = (BF16, INT8, INT4)  # kinds that lie in records too
LAYOUTS = (8, 4)  # values for 16 columns
PATTERNS = ("random", "first", "last", "alternate", "2:4", "4:8")

Array = np.ndarray[Any, Any]
Place = Callable[[Array], Array]


def to_bf16(numbers: Array) -> Array:
    """Bits of the nearest bf16, ties to even."""
    bits = np.ascontiguousarray(numbers, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bf16(bits: Array) -> Array:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def address(array: Array | None) -> int | None:
    return None if array is None else array.ctypes.data


def kept(rng: np.random.Generator, pattern: str, rows: int, cols: int, density: float) -> Array:
    """Which weights are stored."""
    keep = np.zeros((rows, cols), bool)
    if pattern == "random":
        keep = rng.random((rows, cols)) < density
    elif pattern == "first":
        keep[:, :1] = True
    elif pattern == "last":
        keep[:, -1:] = True
    elif pattern == "alternate":
        keep[::2] = True
    else:
        few, many = map(int, pattern.split(":"))
        order = rng.random((rows, -(-cols // many), many)).argsort(axis=2) < few
        keep = order.reshape(rows, -1)[:, :cols]
    return keep


@dataclass
class Matrix:
    """What a struct points to, and the same weights in float64."""

    kind: int
    group: int
    weight: Array
    arrays: dict[str, Array | None]
    struct: MatrixStruct = field(default_factory=MatrixStruct)

    def point(self, place: Place = lambda array: array) -> Matrix:
        """Fill the struct, every array first moved by `place`."""
        self.arrays = {name: array if array is None else place(array) for name, array in self.arrays.items()}
        rows, cols = self.weight.shape
        values = self.arrays["values"]
        assert values is not None
        pointers = {name: address(array) for name, array in self.arrays.items()}
        fields = {"kind": self.kind, "group": self.group, "rows": rows, "cols": cols, **pointers}
        fields |= {"mask_words": -(-cols // 64), "value_bytes": values.nbytes}
        for name, value in fields.items():
            setattr(self.struct, name, value)
        return self


def _codes(rng: np.random.Generator, kind: int, shape: tuple[int, int], group: int) -> tuple[Array, ...]:
    """Return codes, their numbers, scales, and a table for int4 and int3."""
    if kind == FP32:
        codes = rng.standard_normal(shape).astype(np.float32)
        return codes, codes, None, None
    if kind == BF16:
        codes = to_bf16(rng.standard_normal(shape))
        return codes, from_bf16(codes), None, None
    scales = to_bf16(rng.uniform(0.01, 0.1, (shape[0], -(-shape[1] // group))))
    wide = np.repeat(from_bf16(scales), group, axis=1)[:, : shape[1]]
    if kind == INT8:
        codes = rng.integers(-127, 128, shape).astype(np.int8)
        return codes, codes * wide, scales, None
    entries = 16 if kind == INT4 else 8
    table = rng.integers(-127, 128, entries).astype(np.int8)
    codes = rng.integers(0, entries, shape).astype(np.uint8)
    return codes, table[codes] * wide, scales, table


def _pairs(codes: Array, keep: Array) -> Array:
    parts = []
    for row in range(0, len(codes), 2):
        low, high = (codes[r][keep[r]] if r < len(codes) else codes[:0, 0] for r in (row, row + 1))
        part = np.zeros(max(len(low), len(high)), np.uint8)
        part[: len(low)] |= low
        part[: len(high)] |= high << 4
        parts.append(part)
    return np.concatenate(parts) if parts else np.zeros(0, np.uint8)


def _octets(codes: Array) -> Array:
    """Three bytes for each column of eight rows, in words of 64 columns, bit by bit as ``lowdim.h`` says."""
    (rows, cols), (blocks, words) = codes.shape, (-(-codes.shape[0] // 8), -(-codes.shape[1] // 64))
    whole = np.zeros((blocks, 8, 64 * words), np.uint8)
    whole.reshape(8 * blocks, 64 * words)[:rows, :cols] = codes
    runs = np.zeros((blocks, 3, 64 * words), np.uint8)
    places = {row: [(row // 2, row % 2 * 3 + bit) for bit in range(3)] for row in range(6)}  # run and bit of each bit
    places |= {6: [(0, 6), (0, 7), (2, 6)], 7: [(1, 6), (1, 7), (2, 7)]}
    for row, bits in places.items():
        for bit, (run, place) in enumerate(bits):
            runs[:, run] |= (whole[:, row] >> bit & 1) << place
    return np.ascontiguousarray(runs.reshape(blocks, 3, words, 64).transpose(0, 2, 1, 3)).reshape(192 * blocks * words)


def _row_ptr(kind: int, keep: Array, width: int) -> Array:
    counts = keep.sum(axis=1)
    if kind == INT4:
        counts = np.append(counts, 0) if len(counts) % 2 else counts
        counts = counts.reshape(-1, 2).max(axis=1)
    return np.concatenate([[0], np.cumsum(counts * width)]).astype(np.int64)


def build(
    rng: np.random.Generator,
    kind: int,
    shape: tuple[int, int],
    group: int = 64,
    keep: Array | None = None,
    bias: bool = True,
) -> Matrix:
    """A random matrix; dense without `keep`, as int3 always is."""
    assert keep is None or kind in PACKED
    rows, cols = shape
    codes, numbers, scales, table = _codes(rng, kind, shape, group)
    stored = np.ones(shape, bool) if keep is None else keep
    values = _octets(codes) if kind == INT3 else _pairs(codes, stored) if kind == INT4 else codes[stored]
    mask = row_ptr = None
    if keep is not None:
        bits = np.zeros((rows, -(-cols // 64) * 64), bool)
        bits[:, :cols] = keep
        mask = np.packbits(bits, axis=1, bitorder="little").view(np.uint64)
        row_ptr = _row_ptr(kind, keep, values.itemsize)
    arrays = {
        "mask": mask,
        "values": values,
        "row_ptr": row_ptr,
        "scales": scales,
        "table": table,
        "bias": rng.standard_normal(rows).astype(np.float32) if bias else None,
    }
    weight = np.where(stored, numbers, np.float32(0)).astype(np.float64)
    return Matrix(kind, group if kind >= INT8 else 0, weight, arrays).point()


def order(kind: int, layout: int) -> Array:
    """Where the values of a record stand, by group of 16 columns and place within it."""
    at = np.arange(64)
    if kind == BF16:
        return at
    group, i = at // layout, at % layout
    return 16 * (group % 4) + 4 * (16 // layout * (i // 4) + group // 4) + i % 4


def records(m: Matrix, keep: Array, layout: int = 8, rng: np.random.Generator | None = None) -> Matrix:
    """The same weights in the layout LD_EIGHTS or LD_FOURS, written out record by record.

    `keep` marks exactly `layout` of every 16 columns; with `rng` some of them hold zeros, as filled up ones do.
    """
    (rows, cols), kind, few = keep.shape, m.kind, keep.shape[1] // 16 * layout
    pairs, stretches = -(-rows // 2), -(-cols * layout // 1024)
    places = np.tile(np.arange(layout, dtype=np.uint8), (2 * pairs, 64 // layout * stretches, 1))
    places[:rows, : cols // 16] = np.nonzero(keep.reshape(rows, -1, 16))[2].reshape(rows, -1, layout)
    places = places.reshape(2 * pairs, stretches, 64)
    stored = m.arrays["values"]
    assert stored is not None
    values = np.zeros((2 * pairs, 64 * stretches), np.uint8 if kind == INT4 else stored.dtype)
    if kind == INT4:
        halves = stored.reshape(pairs, few)
        values[0::2, :few], values[1::2, :few] = halves & 15, halves >> 4
        values[rows:] = 0
    else:
        values[:rows, :few] = stored.reshape(rows, few)
    if rng is not None:
        values[rng.random(values.shape) < 0.3] = 0
        m.weight[keep] *= values[:rows, :few].reshape(-1) != 0
    values = values.reshape(2 * pairs, stretches, 64)
    back = order(kind, layout).argsort()
    places, values = places[..., back], values[..., back]
    packed = values[0::2] | values[1::2] << 4 if kind == INT4 else np.concatenate([values[0::2], values[1::2]], 2)
    where = places[:, :, :32] | places[:, :, 32:] << 4
    record = np.concatenate([where[0::2], where[1::2], np.ascontiguousarray(packed).view(np.uint8)], 2)
    m.arrays |= {"values": record, "mask": None, "row_ptr": None}
    m.struct.layout = layout
    return m.point()


def quantised(x: Array, group: int) -> Array:
    """Activations [tokens, cols] as the int8 kernels see them: int8 per group and token, times a scale."""
    out = np.zeros_like(x)
    for start in range(0, x.shape[1], group):
        part = x[:, start : start + group]
        top = np.abs(part).max(axis=1, keepdims=True)
        some = np.where(top < 1e-30, np.float32(1), top)
        codes = np.rint(part * (np.float32(127) / some)) * (top >= 1e-30)
        out[:, start : start + group] = codes * (top / np.float32(127))
    return out


def expected(m: Matrix, x: Array) -> tuple[Array, Array]:
    """The product [tokens, rows] in float64, and the size that its rounding errors are proportional to."""
    seen = x
    if m.kind == BF16:
        seen = from_bf16(to_bf16(x))
    elif m.kind >= INT8:
        seen = quantised(x, m.group)
    bias = m.arrays["bias"]
    extra = np.zeros(len(m.weight)) if bias is None else bias.astype(np.float64)
    exact = seen.astype(np.float64) @ m.weight.T + extra
    return exact, np.abs(seen).astype(np.float64) @ np.abs(m.weight).T + np.abs(extra)


def linear(
    library: Library, m: Matrix, x: Array, y: Array | None = None, *, y_kind: int = FP32, threads: int = 1
) -> Array:
    """Call ``ld_linear``. `x`, `y`: float32, or uint16 for bf16; rows may be further apart than they are long."""
    tokens, rows = len(x), len(m.weight)
    if y is None:
        y = np.full((tokens, rows), 77, np.float32 if y_kind == FP32 else np.uint16)
    x_kind = FP32 if x.dtype == np.float32 else BF16
    status = library.linear(
        ctypes.addressof(m.struct),
        x_kind,
        address(x),
        x.strides[0] // x.itemsize,
        tokens,
        y_kind,
        address(y),
        y.strides[0] // y.itemsize,
        threads,
    )
    assert library.message(status) == "no error"
    return y


def unpack(
    library: Library,
    m: Matrix,
    begin: int,
    end: int,
    *,
    out_kind: int = FP32,
    threads: int = 1,
    place: Any = None,
) -> Array:
    """Call ``ld_unpack`` for the rows [begin, end)."""
    out = np.full((end - begin, m.weight.shape[1]), 77, np.float32 if out_kind == FP32 else np.uint16)
    out = out if place is None else place(out)
    stride = m.weight.shape[1]
    status = library.unpack(ctypes.addressof(m.struct), begin, end, out_kind, address(out), stride, threads)
    assert library.message(status) == "no error"
    return out


def check(library: Library, m: Matrix) -> str:
    return library.message(library.check(ctypes.addressof(m.struct)))

"""Sparse training: nothing is read or written beyond its array, and bad arguments are refused."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest
from tests.native.guard import guarded
from tests.native.matrices import Array, address

from lowdim.core.native import Library
from lowdim.nn.csr.native import SparseStruct

OK, BAD_ARGUMENT, BAD_SIZE = 0, 1, 4
SHAPES = [(1, 1, 1), (5, 33, 2), (17, 64, 7), (19, 70, 16), (16, 130, 33), (6, 64, 100), (7, 65, 129)]


class Bound:
    """The functions of the header, told that every whole number is 64 bits wide but for the last of a product."""

    def __init__(self, library: Library) -> None:
        size, pointer, word = ctypes.c_int64, ctypes.c_void_p, ctypes.c_int32
        bind, name = library.bind, "ld_sparse_"
        self.panels = bind(f"{name}panels", word, size, size, size)
        self.index = bind(f"{name}index", word, size, size, pointer, size, pointer, pointer)
        self.cuts = bind(f"{name}cuts", word, size, size, pointer, pointer, word, pointer)
        self.move = bind(f"{name}move", word, *[size] * 2, *[pointer] * 4, size, *[pointer] * 3, size)
        self.forward = bind(f"{name}forward", word, *[pointer] * 2, size, size, pointer, pointer, size, word)
        self.backward = bind(
            f"{name}backward",
            word,
            *[pointer] * 2,
            size,
            pointer,
            *[size] * 2,
            *[pointer] * 2,
            size,
            pointer,
            word,
        )
        self.top = bind(
            f"{name}top",
            word,
            *[size] * 2,
            pointer,
            size,
            pointer,
            *[size] * 2,
            pointer,
            *[size] * 2,
            pointer,
            word,
        )


@pytest.fixture
def bound(library: Library) -> Bound:
    return Bound(library)


def weight(bound: Bound, dense: Array, side: str) -> tuple[SparseStruct, list[Array]]:
    """The struct of a dense matrix's nonzeros, every array of it guarded; and what keeps the arrays alive."""
    rows, cols = dense.shape
    positions = guarded(np.flatnonzero(dense), side)
    kept = len(positions)
    row_ptr, col = guarded(np.zeros(rows + 1, np.int64), side), guarded(np.zeros(kept, np.int32), side)
    assert bound.index(rows, cols, address(positions), kept, address(row_ptr), address(col)) == OK
    panels = bound.panels(rows, cols, kept)
    cuts = guarded(np.zeros((panels - 1, rows), np.int32), side)
    assert bound.cuts(rows, cols, address(row_ptr), address(col), panels, address(cuts)) == OK
    values = guarded(dense[dense != 0], side)
    made = SparseStruct(rows, cols, address(row_ptr), address(col), address(values), panels, address(cuts))
    return made, [positions, row_ptr, col, cuts, values]


@pytest.mark.parametrize("side", ["behind", "before"])
@pytest.mark.parametrize("sizes", SHAPES)
def test_products_stay_inside_their_arrays(bound: Bound, sizes: tuple[int, int, int], side: str) -> None:
    rows, cols, batch = sizes
    rng = np.random.default_rng(rows)
    dense = np.where(rng.random((rows, cols)) < 0.3, rng.standard_normal((rows, cols)), 0).astype(np.float32)
    dense[0, 0] = 1.0
    made, alive = weight(bound, dense, side)
    x, g, bias = (
        guarded(rng.standard_normal(shape).astype(np.float32), side)
        for shape in ((batch, cols), (batch, rows), (rows,))
    )
    y, d_x, d_bias = (guarded(np.full(a.shape, np.nan, np.float32), side) for a in (g, x, bias))
    d_values = guarded(np.full(len(alive[-1]), np.nan, np.float32), side)
    inputs, outputs = (address(x), cols), (address(g), rows)
    assert bound.forward(ctypes.byref(made), *inputs, batch, address(bias), address(y), rows, 2) == OK
    out = address(d_values), address(d_x), cols, address(d_bias)
    assert bound.backward(ctypes.byref(made), *inputs, *outputs, batch, *out, 2) == OK
    wide_x, wide_g = x.astype(np.float64), g.astype(np.float64)
    np.testing.assert_allclose(y, wide_x @ dense.T + bias, atol=1e-4)
    np.testing.assert_allclose(d_x, wide_g @ dense, atol=1e-4)
    np.testing.assert_allclose(d_values, (wide_g.T @ wide_x)[dense != 0], atol=2e-4)
    np.testing.assert_allclose(d_bias, wide_g.sum(0), atol=1e-4)
    count = (rows * cols - len(alive[0])) // 2
    top = guarded(np.zeros(count, np.int64), side)
    chosen = address(alive[0]), len(alive[0]), count, address(top)
    assert bound.top(rows, cols, *inputs, *outputs, batch, *chosen, 2) == OK
    scores = np.abs(wide_g.T @ wide_x).ravel()
    scores[alive[0]] = -1
    np.testing.assert_allclose(np.sort(scores[top]), np.sort(scores)[::-1][:count][::-1], atol=1e-3)


@pytest.mark.parametrize("side", ["behind", "before"])
def test_moves_stay_inside_their_arrays(bound: Bound, side: str) -> None:
    dense = np.zeros((3, 5), np.float32)
    dense.flat[[0, 3, 7, 14]] = 1
    _, alive = weight(bound, dense, side)
    old = 3, 5, address(alive[1]), address(alive[2])
    keep, grown = guarded(np.array([1, 0, 1, 0], np.uint8), side), guarded(np.array([1, 3, 13]), side)
    row_ptr = guarded(np.zeros(4, np.int64), side)
    col, source = (guarded(np.zeros(5, np.int32), side) for _ in range(2))
    new: tuple[Any, ...] = address(row_ptr), address(col), address(source)
    assert bound.move(*old, address(keep), address(grown), 3, *new, 5) == OK
    assert row_ptr.tolist() == [0, 3, 4, 5]
    assert col.tolist() == [0, 1, 3, 2, 3]
    assert source.tolist() == [0, -1, 1, 2, -1]
    assert bound.move(*old, address(keep), address(grown), 3, *new, 4) == BAD_SIZE


def test_bad_arguments(bound: Bound) -> None:
    made, alive = weight(bound, np.eye(4, dtype=np.float32), "behind")
    x, y = np.zeros((2, 4), np.float32), np.zeros((2, 4), np.float32)
    w = ctypes.byref(made)
    assert bound.forward(w, address(x), 4, 2, None, address(y), 4, 0) == BAD_ARGUMENT
    assert bound.forward(w, address(x), 3, 2, None, address(y), 4, 1) == BAD_ARGUMENT
    assert bound.forward(w, address(x), 4, -1, None, address(y), 4, 1) == BAD_ARGUMENT
    assert bound.forward(w, None, 4, 2, None, address(y), 4, 1) == BAD_ARGUMENT
    assert bound.forward(None, address(x), 4, 2, None, address(y), 4, 1) == BAD_ARGUMENT
    assert bound.backward(w, None, 4, address(y), 4, 2, address(x), None, 4, None, 1) == BAD_ARGUMENT
    top = np.zeros(20, np.int64)
    given = 4, 4, address(x), 4, address(y), 4, 2, address(alive[0]), 4
    assert bound.top(*given, 13, address(top), 1) == BAD_ARGUMENT
    assert bound.top(*given, 12, address(top), 1) == OK
    assert bound.index(4, 2**31, address(top), 0, address(top), None) == BAD_ARGUMENT

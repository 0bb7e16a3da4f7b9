"""The layouts of eight and four values for every 16 columns: products against float64, conversion, checks, bounds."""

from __future__ import annotations

import ctypes
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.native import matrices as t
from tests.native.guard import guarded
from tests.native.matrices import BF16, FP32, INT3, INT4, Array, Matrix
from tests.native.test_linear import assert_close, per_level
from tests.native.test_unpack import assert_rows

from lowdim.core.native import Library

PLACES = "the columns of the values do not ascend"
kinds = pytest.mark.parametrize("kind", t.RECORDED, ids=[t.NAMES[kind] for kind in t.RECORDED])
layouts = pytest.mark.parametrize("layout", t.LAYOUTS)
PATTERNS = {8: ("8:16", "4:8", "2:4"), 4: ("4:16", "2:8", "1:4")}


def pattern_of(layout: int) -> str:
    return PATTERNS[layout][0]


def made(
    rng: np.random.Generator, kind: int, shape: tuple[int, int], group: int = 64, layout: int = 8, pattern: str = ""
) -> Matrix:
    keep = t.kept(rng, pattern or pattern_of(layout), *shape, 0.5)
    return t.records(t.build(rng, kind, shape, group, keep), keep, layout, None if kind == INT4 else rng)


def inputs(rng: np.random.Generator, tokens: int, cols: int) -> Array:
    x = rng.standard_normal((tokens, cols)).astype(np.float32)
    x[rng.random(x.shape) < 0.01] *= 50
    return x


@st.composite
def products(draw: st.DrawFn, kind: int) -> tuple[Matrix, Array]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape = draw(st.integers(1, 40)), 16 * draw(st.one_of(st.sampled_from((1, 4, 8, 36, 96)), st.integers(1, 40)))
    layout = draw(st.sampled_from(t.LAYOUTS))
    pattern, group = draw(st.sampled_from(PATTERNS[layout])), draw(st.sampled_from((64, 128)))
    return made(rng, kind, shape, group, layout, pattern), inputs(rng, draw(st.integers(1, 16)), shape[1])


@kinds
@given(data=st.data())
@per_level
def test_matches_float64_and_comes_back(library: Library, kind: int, data: st.DataObject) -> None:
    m, x = data.draw(products(kind))
    assert t.check(library, m) == "no error"
    y = t.linear(library, m, x, threads=data.draw(st.integers(1, 3)))
    assert_close(y, m, x)
    np.testing.assert_array_equal(y, np.concatenate([t.linear(library, m, row[None]) for row in x]))
    begin = data.draw(st.integers(0, len(m.weight)))
    assert_rows(library, m, begin, data.draw(st.integers(begin, len(m.weight))), threads=2)


@kinds
@layouts
def test_a_token_has_the_same_bits_in_any_company(library: Library, kind: int, layout: int) -> None:
    rng = np.random.default_rng(7)
    for shape, group in (((37, 592), 64), ((6, 64), 128), ((19, 4176), 128)):
        m, x = made(rng, kind, shape, group, layout), inputs(rng, 17, shape[1])
        alone = np.concatenate([t.linear(library, m, row[None]) for row in x])
        for tokens in range(2, len(x) + 1):
            np.testing.assert_array_equal(t.linear(library, m, x[:tokens], threads=1 + tokens % 3), alone[:tokens])


@kinds
@layouts
def test_a_mask_is_converted(library: Library, kind: int, layout: int) -> None:
    for shape, way in (((1, 16), 2), ((5, 80), 0), ((64, 4096), 1), ((129, 576), 0)):
        rng = np.random.default_rng(shape[0])
        keep = t.kept(rng, PATTERNS[layout][way], *shape, 0.5)
        m = t.build(rng, kind, shape, keep=keep)
        found = converted(library, m, layout)
        stored = t.records(m, keep, layout).arrays["values"]
        assert found is not None and stored is not None and found.shape == (stored.size,)
        np.testing.assert_array_equal(found, stored.reshape(-1))


def converted(library: Library, m: Matrix, layout: int) -> Array | None:
    rows, cols = m.weight.shape
    size = library.records_bytes(m.kind, layout, rows, cols)
    out = guarded(np.zeros(size, np.uint8), "behind")
    status = library.records(ctypes.addressof(m.struct), layout, out.ctypes.data, size, 2)
    return out if library.message(status) == "no error" else None


@kinds
@layouts
def test_fewer_are_filled_up_where_there_is_a_zero(library: Library, kind: int, layout: int) -> None:
    rng = np.random.default_rng(3)
    keep = t.kept(rng, pattern_of(layout), 33, 272, 0.5) & (rng.random((33, 272)) < 0.7)
    m = t.build(rng, kind, keep.shape, keep=keep)
    found = converted(library, m, layout)
    if kind == INT4:
        assert found is None
        return
    assert found is not None
    m.arrays |= {"values": found, "mask": None, "row_ptr": None}
    m.struct.layout = layout
    m.point()
    assert t.check(library, m) == "no error"
    assert_close(t.linear(library, m, x := inputs(rng, 3, 272)), m, x)
    assert_rows(library, m, 0, 33, threads=1)


@kinds
@layouts
def test_one_more_of_sixteen_does_not_fit(library: Library, kind: int, layout: int) -> None:
    rng = np.random.default_rng(4)
    keep = t.kept(rng, pattern_of(layout), 200, 128, 0.5)
    keep[197, 112 + np.argmin(keep[197, 112:])] = True
    assert converted(library, t.build(rng, kind, keep.shape, keep=keep), layout) is None


@kinds
@layouts
@pytest.mark.parametrize("side", ["behind", "before"])
def test_nothing_is_touched_outside_the_arrays(library: Library, kind: int, layout: int, side: str) -> None:
    rng = np.random.default_rng(6)
    place = partial(guarded, side=side)
    for shape in ((1, 16), (3, 64), (2, 128), (5, 144), (7, 576), (1, 2064)):
        for group in (64, 128):
            m = made(rng, kind, shape, group, layout).point(place)
            for tokens in (1, 2, 4, 8, 11):
                x = place(inputs(rng, tokens, shape[1]))
                assert_close(t.linear(library, m, x, place(np.zeros((tokens, shape[0]), np.float32))), m, x)
            for out_kind in (FP32, BF16):
                t.unpack(library, m, 0, shape[0], out_kind=out_kind, place=place)


@kinds
@layouts
def test_what_is_wrong_is_told(library: Library, kind: int, layout: int) -> None:
    rng = np.random.default_rng(8)
    argument = "a kind, group, size or pointer that the format does not allow"
    for name, value in {"kind": FP32, "cols": 100, "layout": 2, "rows": 2**50, "mask": 4096}.items():
        m = made(rng, kind, (7, 112), layout=layout)
        setattr(m.struct, name, value)
        assert t.check(library, m) == argument, name
    m = made(rng, kind, (7, 112), layout=layout)
    m.struct.kind = INT3
    assert t.check(library, m) == argument
    m = made(rng, kind, (7, 112), layout=layout)
    m.struct.value_bytes -= 1
    assert t.check(library, m) == "fewer values than the mask or the shape asks for"
    m = made(rng, kind, (7, 112), layout=layout)
    values = m.arrays["values"]
    assert values is not None
    values[1, 0, 37] = values[1, 0, 36]
    assert t.check(library, m) == PLACES


@kinds
@layouts
def test_any_bytes_can_be_multiplied(library: Library, kind: int, layout: int) -> None:
    rng = np.random.default_rng(9)
    m = made(rng, kind, (5, 272), layout=layout).point(partial(guarded, side="behind"))
    values = m.arrays["values"]
    assert values is not None
    values[...] = rng.integers(0, 256, values.shape)
    assert t.check(library, m) == PLACES
    t.linear(library, m, inputs(rng, 9, 272))
    t.unpack(library, m, 0, 5)


@kinds
@layouts
def test_what_is_not_finite_reaches_the_rows_that_keep_its_column(library: Library, kind: int, layout: int) -> None:
    rng = np.random.default_rng(3)
    m = made(rng, kind, (9, 208), layout=layout)
    x = rng.standard_normal((3, 208)).astype(np.float32)
    x[1, 130] = np.nan
    y = t.linear(library, m, x)
    reached = m.weight[:, 130] != 0 if kind == BF16 else np.ones(9, bool)
    assert reached.any() and np.isnan(y[1, reached]).all()
    assert np.isfinite(y[[0, 2]]).all()

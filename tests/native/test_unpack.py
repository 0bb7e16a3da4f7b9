"""``ld_unpack``: rows come back exactly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.native import matrices as t
from tests.native.matrices import BF16, FP32, KINDS, NAMES, Matrix
from tests.native.test_linear import per_level, products

from lowdim.core.native import Library


def assert_rows(library: Library, m: Matrix, begin: int, end: int, threads: int) -> None:
    wanted = m.weight[begin:end].astype(np.float32)
    numbers = t.unpack(library, m, begin, end, threads=threads)
    np.testing.assert_array_equal(numbers, wanted)
    halves = t.unpack(library, m, begin, end, out_kind=BF16, threads=threads)
    np.testing.assert_array_equal(t.from_bf16(halves), t.from_bf16(t.to_bf16(wanted)))


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
@given(data=st.data())
@per_level
def test_rows_come_back(library: Library, kind: int, data: st.DataObject) -> None:
    m, _, _ = data.draw(products(kind))
    begin = data.draw(st.integers(0, len(m.weight)))
    assert_rows(library, m, begin, data.draw(st.integers(begin, len(m.weight))), threads=1)


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_threads_share_the_rows(library: Library, kind: int) -> None:
    rng = np.random.default_rng(0)
    shape = (701, 1000)
    for keep in (None, t.kept(rng, "random", *shape, 0.4))[: 1 + (kind in t.PACKED)]:
        assert_rows(library, t.build(rng, kind, shape, keep=keep), 1, 700, threads=4)


def test_bf16_is_kept_to_the_bit(library: Library) -> None:
    rng = np.random.default_rng(1)
    keep = t.kept(rng, "random", 16, 300, 0.5)
    m = t.build(rng, BF16, (16, 300), keep=keep)
    values = m.arrays["values"]
    assert values is not None
    values[:] = rng.integers(0, 2**16, values.shape)  # NaN, infinities and subnormals among them
    out = t.unpack(library, m, 0, 16, out_kind=BF16)
    np.testing.assert_array_equal(out[keep], values)
    assert not out[~keep].any()


def test_nan_stays_nan_in_bf16(library: Library) -> None:
    m = t.build(np.random.default_rng(2), FP32, (1, 70))
    values = m.arrays["values"]
    assert values is not None
    values.view(np.uint32)[:] = 0x7F800001  # would round to infinity
    assert np.isnan(t.from_bf16(t.unpack(library, m, 0, 1, out_kind=BF16))).all()

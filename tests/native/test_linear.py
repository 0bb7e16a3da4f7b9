"""``ld_linear`` against float64, for every level, kind, pattern and odd shape."""

from __future__ import annotations

import os
import signal
import time
import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.native import matrices as t
from tests.native.matrices import BF16, FP32, INT8, KINDS, NAMES, Array, Matrix

from lowdim.core.native import Library

COLUMNS = (1, 63, 64, 65, 127, 128, 129, 576, 1000)
EXACT = 1e-6  # of the sum of |w| |x|
per_level = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)


@st.composite
def shapes(draw: st.DrawFn) -> tuple[int, int]:
    rows = draw(st.integers(1, 40))
    return rows, draw(st.one_of(st.sampled_from(COLUMNS), st.integers(1, 300)))


@st.composite
def products(draw: st.DrawFn, kind: int) -> tuple[Matrix, Array, np.random.Generator]:
    """A matrix and up to 16 inputs in fp32."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    rows, cols = shape = draw(shapes())
    keep = None
    if kind in t.PACKED and draw(st.integers(0, 3)):
        density = draw(st.sampled_from((0.0, 0.05, 0.3, 0.5, 0.7, 0.95, 1.0)))
        keep = t.kept(rng, draw(st.sampled_from(t.PATTERNS)), rows, cols, density)
    matrix = t.build(rng, kind, shape, draw(st.sampled_from((64, 128))), keep, draw(st.booleans()))
    x = rng.standard_normal((draw(st.integers(1, 16)), cols)).astype(np.float32)
    x[rng.random(x.shape) < 0.01] *= 50  # outliers, as real activations have them
    return matrix, x, rng


def assert_close(y: Array, m: Matrix, x: Array, rounding: float = 0.0) -> None:
    exact, size = t.expected(m, x)
    error = np.abs(y - exact)
    bound = EXACT * size + rounding * np.abs(exact)
    assert (error <= bound).all(), f"error {np.max(error / (size + 1e-30)):.1e} of the sum of |w| |x|"


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
@given(data=st.data())
@per_level
def test_matches_float64(library: Library, kind: int, data: st.DataObject) -> None:
    m, x, _ = data.draw(products(kind))
    assert t.check(library, m) == "no error"
    y = t.linear(library, m, x)
    assert_close(y, m, x)
    one_by_one = np.concatenate([t.linear(library, m, row[None]) for row in x])
    np.testing.assert_array_equal(y, one_by_one)


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
@given(data=st.data())
@per_level
def test_reads_and_writes_bf16_rows_with_gaps(library: Library, kind: int, data: st.DataObject) -> None:
    m, x, rng = data.draw(products(kind))
    (rows, cols), tokens = m.weight.shape, len(x)
    wide_x = np.full((tokens, cols + int(rng.integers(0, 9))), 0x7FC0, np.uint16)  # NaN in the gaps
    wide_x[:, :cols] = t.to_bf16(x)
    wide_y = np.full((tokens, rows + 5), 0x1234, np.uint16)
    t.linear(library, m, wide_x, wide_y, y_kind=BF16, threads=2)
    assert_close(t.from_bf16(wide_y[:, :rows]), m, t.from_bf16(t.to_bf16(x)), rounding=2**-8)
    assert (wide_y[:, rows:] == 0x1234).all()


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
@pytest.mark.parametrize("tokens", [1, 2, 5, 8, 20, 70])
def test_threads_change_nothing(library: Library, kind: int, tokens: int) -> None:
    rng = np.random.default_rng(tokens)
    shape = (701, 1000)
    x = rng.standard_normal((tokens, 1000)).astype(np.float32)
    for keep in (None, t.kept(rng, "random", *shape, 0.4))[: 1 + (kind in t.PACKED)]:
        m = t.build(rng, kind, shape, keep=keep)
        alone = t.linear(library, m, x)
        assert_close(alone, m, x)
        for threads in (2, 3, 4):
            np.testing.assert_array_equal(alone, t.linear(library, m, x, threads=threads))


@pytest.mark.parametrize(
    ("kind", "density"), [*((k, None) for k in KINDS), *((k, d) for k in t.PACKED for d in (0.2, 0.7))]
)
@pytest.mark.parametrize("shape", [(37, 577), (7, 1), (6, 65), (18, 1000), (5, 4161)])
def test_a_token_has_the_same_bits_in_any_company(
    library: Library, kind: int, shape: tuple[int, int], density: float | None
) -> None:
    rng = np.random.default_rng(7)
    keep = None if density is None else t.kept(rng, "random", *shape, density)
    m = t.build(rng, kind, shape, group=128 if shape[1] % 2 else 64, keep=keep)
    x = rng.standard_normal((17, shape[1])).astype(np.float32)
    alone = np.concatenate([t.linear(library, m, row[None]) for row in x])
    for tokens in range(2, len(x) + 1):
        for first in {0, len(x) - tokens}:
            found = t.linear(library, m, x[first : first + tokens], threads=1 + tokens % 3)
            np.testing.assert_array_equal(found, alone[first : first + tokens])


@pytest.mark.parametrize(("kind", "dense"), t.FORMS)
@pytest.mark.parametrize(("rows", "cols", "tokens"), [(0, 5, 2), (4, 0, 2), (0, 0, 1), (3, 70, 0)])
def test_nothing_to_multiply(library: Library, kind: int, dense: bool, rows: int, cols: int, tokens: int) -> None:
    rng = np.random.default_rng(0)
    m = t.build(rng, kind, (rows, cols), keep=None if dense else np.zeros((rows, cols), bool))
    assert t.check(library, m) == "no error"
    y = t.linear(library, m, np.ones((tokens, cols), np.float32))
    assert_close(y, m, np.ones((tokens, cols), np.float32))


@pytest.mark.parametrize(("kind", "dense"), t.FORMS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_with_its_token(library: Library, kind: int, bad: float, dense: bool) -> None:
    rng = np.random.default_rng(3)
    m = t.build(rng, kind, (9, 200), keep=None if dense else t.kept(rng, "random", 9, 200, 0.5))
    x = rng.standard_normal((3, 200)).astype(np.float32)
    x[1, 130] = bad
    for y_kind in (FP32, BF16):
        y = t.linear(library, m, x, y_kind=y_kind)
        numbers = y if y_kind == FP32 else t.from_bf16(y)
        assert not np.isfinite(numbers[1]).any()
        assert np.isfinite(numbers[[0, 2]]).all()


@pytest.mark.parametrize("kind", KINDS[INT8:], ids=NAMES[INT8:])
def test_inputs_at_the_edges_of_quantisation(library: Library, kind: int) -> None:
    rng = np.random.default_rng(4)
    m = t.build(rng, kind, (8, 320), keep=t.kept(rng, "random", 8, 320, 0.5) if kind in t.PACKED else None)
    x = rng.standard_normal((5, 320)).astype(np.float32)
    x[0] = 0
    x[1, 64:128] = 1e-38
    x[2, :64] = np.where(np.arange(64) % 2, 3e38, -3e38) / 200
    x[3, :64] = np.arange(64) / 2 + 0.5  # ties, with amax 127 / 4 after scaling
    x[4] *= 1e-20
    y = t.linear(library, m, x)
    assert_close(y, m, x)
    np.testing.assert_array_equal(y[0], m.arrays["bias"])


@pytest.mark.parametrize("kind", KINDS[INT8:], ids=NAMES[INT8:])
@pytest.mark.parametrize("group", [64, 128])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_codes_do_not_overflow(library: Library, kind: int, group: int, sign: int) -> None:
    rng = np.random.default_rng(5)
    m = t.build(rng, kind, (6, 256), group, bias=False)
    top = 127 * sign
    codes = m.arrays["values" if kind == INT8 else "table"]
    assert codes is not None
    codes[:] = top
    scales = m.arrays["scales"]
    assert scales is not None
    m.weight[:] = top * np.repeat(t.from_bf16(scales), group, axis=1)
    x = np.full((2, 256), 3.5, np.float32)
    x[1] *= -1
    assert_close(t.linear(library, m, x), m, x)


def test_a_forked_child_computes_alone(library: Library) -> None:
    rng = np.random.default_rng(6)
    m = t.build(rng, INT8, (701, 1000))
    x = rng.standard_normal((8, 1000)).astype(np.float32)
    wanted = t.linear(library, m, x, threads=4)  # from here on there is a pool, which the child does not have
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads
        child = os.fork()
    if child == 0:
        os._exit(0 if (t.linear(library, m, x, threads=4) == wanted).all() else 1)
    deadline = time.monotonic() + 60
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.01)
    if ended == (0, 0):
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert ended == (child, 0)

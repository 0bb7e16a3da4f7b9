"""``ld_check`` tells what is wrong with a matrix, and what it lets pass can be multiplied."""

from __future__ import annotations

import ctypes
import os
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.native import matrices as t
from tests.native.guard import guarded
from tests.native.matrices import BF16, FP32, INT3, INT4, INT8, KINDS, NAMES, Array, Matrix

from lowdim.core.native import LEVELS, Library

ARGUMENT = "a kind, group, size or pointer that the format does not allow"
MASK = "the mask has bits beyond the last column"
OFFSETS = "the row offsets disagree with the mask"
SIZE = "fewer values than the mask or the shape asks for"


def matrix(kind: int, dense: bool = False, shape: tuple[int, int] = (7, 100)) -> Matrix:
    rng = np.random.default_rng(8)
    return t.build(rng, kind, shape, keep=None if dense or kind not in t.PACKED else t.kept(rng, "random", *shape, 0.5))


@pytest.mark.parametrize(("kind", "dense"), t.FORMS)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("kind", -1),
        ("kind", 5),
        ("group", 32),
        ("group", -64),
        ("group", 256),
        ("rows", -1),
        ("cols", -1),
        ("rows", 2**62),
        ("cols", 2**62),
        ("rows", 2**63 - 1),
        ("cols", -(2**63)),
        ("value_bytes", -1),
        ("values", None),
    ],
)
def test_sizes_and_pointers(library: Library, kind: int, dense: bool, name: str, value: Any) -> None:
    m = matrix(kind, dense)
    setattr(m.struct, name, value)
    assert t.check(library, m) == ARGUMENT


@pytest.mark.parametrize("kind", t.PACKED, ids=NAMES[: t.INT3])
def test_what_a_packed_matrix_needs(library: Library, kind: int) -> None:
    for name, value in (("row_ptr", None), ("mask_words", 1), ("mask_words", -1), ("mask_words", 2**62)):
        m = matrix(kind)
        setattr(m.struct, name, value)
        assert t.check(library, m) == ARGUMENT, name


@pytest.mark.parametrize("kind", t.PACKED, ids=NAMES[: t.INT3])
def test_arrays_are_aligned(library: Library, kind: int) -> None:
    m = matrix(kind)
    width = (4, 2, 1, 1)[kind]
    steps = {"mask": 4, "row_ptr": 4, "bias": 2, "values": width // 2, "scales": int(kind >= INT8)}
    for name in [name for name, step in steps.items() if step]:
        m.point()
        setattr(m.struct, name, getattr(m.struct, name) + steps[name])
        assert t.check(library, m) == ARGUMENT, name


def test_codes_need_scales_and_a_table(library: Library) -> None:
    for kind, name in ((INT8, "scales"), (INT4, "scales"), (INT4, "table"), (INT3, "scales"), (INT3, "table")):
        for dense in (True, False):
            m = matrix(kind, dense)
            setattr(m.struct, name, None)
            assert t.check(library, m) == ARGUMENT
    for kind in (FP32, BF16):
        m = matrix(kind)
        m.struct.group = 64
        assert t.check(library, m) == ARGUMENT
    assert library.message(library.check(None)) == ARGUMENT


@pytest.mark.parametrize("kind", t.PACKED, ids=NAMES[: t.INT3])
def test_masks_offsets_and_values(library: Library, kind: int) -> None:
    m = matrix(kind)
    mask, offsets = m.arrays["mask"], m.arrays["row_ptr"]
    assert mask is not None and offsets is not None
    mask[6, 1] |= np.uint64(1 << 36)
    assert t.check(library, m) == MASK
    mask[6, 1] &= np.uint64((1 << 36) - 1)
    for place in range(len(offsets)):
        for change in (-(2**62), -1, 1, 2**62):
            offsets[place] += change
            assert t.check(library, m) == OFFSETS
            offsets[place] -= change
    row = m.weight[:2].any(axis=0).argmin() if kind == INT4 else 0
    mask[0, row // 64] ^= np.uint64(1 << int(row % 64))
    assert t.check(library, m) in (OFFSETS, "no error" if kind == INT4 else OFFSETS)
    mask[0, row // 64] ^= np.uint64(1 << int(row % 64))
    for dense in (True, False):
        m = matrix(kind, dense)
        m.struct.value_bytes -= 1
        assert t.check(library, m) == SIZE
    m.struct.value_bytes += 2
    assert t.check(library, m) == "no error"


def test_three_bits_are_stored_dense(library: Library) -> None:
    for shape, size in (((7, 100), 384), ((8, 64), 192), ((9, 65), 768), ((0, 64), 0), ((3, 0), 0)):
        m = matrix(INT3, shape=shape)
        assert m.struct.value_bytes == size
        assert t.check(library, m) == "no error"
        m.struct.value_bytes -= 1
        assert t.check(library, m) == (SIZE if size else ARGUMENT)
    masked, m = matrix(INT4), matrix(INT3)
    m.struct.mask, m.struct.mask_words, m.struct.row_ptr = (
        getattr(masked.struct, name) for name in ("mask", "mask_words", "row_ptr")
    )
    assert t.check(library, m) == ARGUMENT
    found = np.zeros(8, np.int64)
    assert library.row_ptr(INT3, 7, 100, masked.struct.mask, masked.struct.mask_words, t.address(found)) == -1
    assert library.row_ptr(INT3, 0, 0, None, 0, t.address(found)) == -1


@pytest.mark.parametrize("kind", t.PACKED, ids=NAMES[: t.INT3])
def test_row_offsets_are_derived_from_the_mask(library: Library, kind: int) -> None:
    for shape in ((7, 100), (8, 64), (1, 1), (0, 9)):
        m = matrix(kind, shape=shape)
        wanted = m.arrays["row_ptr"]
        assert wanted is not None
        found = np.full_like(wanted, -5)
        arguments = (*shape, m.struct.mask, m.struct.mask_words)
        assert library.row_ptr(kind, *arguments, t.address(found)) == wanted[-1]
        np.testing.assert_array_equal(found, wanted)
    for arguments in (
        (-1, 9, None, 1),
        (1, 9, None, 1),
        (1, 900, m.struct.mask, 1),
        (2**62, 9, m.struct.mask, 1),
    ):
        assert library.row_ptr(kind, *arguments, t.address(found)) == -1
    assert library.row_ptr(9, 1, 1, m.struct.mask, 1, t.address(found)) == -1


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_bad_calls_are_refused(library: Library, kind: int) -> None:
    m = matrix(kind)
    here = ctypes.addressof(m.struct)
    x, y = np.zeros((2, 100), np.float32), np.zeros((2, 7), np.float32)
    good = [here, FP32, t.address(x), 100, 2, FP32, t.address(y), 7, 1]
    assert library.linear(*good) == 0
    for place, value in ((0, None), (1, 2), (2, None), (3, 99), (4, -1), (5, 3), (6, None), (7, 6), (8, 0)):
        bad = [*good[:place], value, *good[place + 1 :]]
        assert library.message(library.linear(*bad)) == ARGUMENT
    out = np.zeros((7, 100), np.float32)
    good = [here, 0, 7, FP32, t.address(out), 100, 1]
    assert library.unpack(*good) == 0
    for place, value in ((0, None), (1, -1), (1, 8), (2, 8), (3, 2), (4, None), (5, 99), (6, 0)):
        bad = [*good[:place], value, *good[place + 1 :]]
        assert library.message(library.unpack(*bad)) == ARGUMENT


@pytest.mark.skipif("libasan" in os.environ.get("LD_PRELOAD", ""), reason="AddressSanitizer ends the process")
@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_want_of_memory_is_an_error(library: Library, kind: int) -> None:
    m = matrix(kind, dense=True)
    m.struct.rows, m.struct.cols, m.struct.value_bytes = 1, 2**46, 2**48
    x, y = np.zeros((1, 100), np.float32), np.zeros((1, 1), np.float32)
    status = library.linear(ctypes.addressof(m.struct), FP32, t.address(x), 2**46, 1, FP32, t.address(y), 1, 1)
    assert library.message(status) == "out of memory"


def test_levels_are_named(library: Library) -> None:
    assert library.use(None) == library.levels[0]
    assert set(library.levels) <= set(LEVELS)
    assert library.levels[-1] == "portable"
    assert any(compiler in library.build for compiler in ("gcc", "clang"))


# What a corrupt file may hold, in place of one element or one field.
NUMBERS = st.one_of(st.integers(-3, 200), st.integers(-(2**63), 2**63 - 1), st.sampled_from([2**31, 2**32, 2**46]))


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
def test_corrupt_matrices_are_refused_or_harmless(library: Library, kind: int, data: st.DataObject) -> None:
    shape = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 200))
    m = matrix(kind, data.draw(st.booleans()), shape)
    for _ in range(data.draw(st.integers(1, 3))):
        corrupt(data, m)
    m.point(partial(guarded, side="behind"))
    if data.draw(st.booleans()):
        name = data.draw(st.sampled_from(["kind", "group", "value_bytes", "mask_words"]))
        value = data.draw(NUMBERS)
        held = getattr(m.struct, name)
        # Nobody can tell from a struct that an array is shorter than it promises: that is the caller's word.
        if name in ("kind", "group") or value < held:
            setattr(m.struct, name, value % 2**31 if name in ("kind", "group") else value)
    if t.check(library, m) != "no error" or m.struct.kind != kind:
        return
    x = np.ones((3, shape[1]), np.float32)
    t.linear(library, m, x, guarded(np.zeros((3, shape[0]), np.float32), "behind"))
    t.unpack(library, m, 0, shape[0], place=partial(guarded, side="behind"))


def corrupt(data: st.DataObject, m: Matrix) -> None:
    name = data.draw(st.sampled_from([name for name, array in m.arrays.items() if array is not None]))
    array = m.arrays[name]
    assert array is not None
    if name == "values" and data.draw(st.booleans()):
        m.arrays[name] = array[: data.draw(st.integers(0, len(array)))]
    elif array.size and name in ("mask", "row_ptr"):
        place = data.draw(st.integers(0, array.size - 1))
        array.reshape(-1).view(np.int64)[place] = data.draw(NUMBERS)
    elif array.size:
        scramble(np.random.default_rng(data.draw(st.integers(0, 2**32))), array)


def scramble(rng: np.random.Generator, array: Array) -> None:
    array.view(np.uint8)[...] = rng.integers(0, 256, array.view(np.uint8).shape)

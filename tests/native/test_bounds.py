"""No kernel reads or writes a byte outside its arrays."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from tests.native import matrices as t
from tests.native.guard import guarded
from tests.native.matrices import BF16, FP32, KINDS, NAMES
from tests.native.test_linear import assert_close

from lowdim.core.native import Library

SHAPES = [(1, 1), (3, 63), (2, 64), (5, 65), (4, 129), (7, 576), (1, 1000)]
DENSITIES = {"empty": 0.0, "few": 0.05, "half": 0.5, "full": 1.0, "dense": None}


@pytest.mark.parametrize("side", ["behind", "before"])
@pytest.mark.parametrize(
    ("kind", "density"), [(kind, d) for d in DENSITIES for kind in (KINDS if d == "dense" else t.PACKED)]
)
def test_nothing_is_touched_outside_the_arrays(library: Library, kind: int, side: str, density: str) -> None:
    rng = np.random.default_rng(6)
    place = partial(guarded, side=side)
    share = DENSITIES[density]
    for shape in SHAPES:
        keep = None if share is None else t.kept(rng, "random", *shape, share)
        for group in (64, 128):
            m = t.build(rng, kind, shape, group, keep).point(place)
            assert t.check(library, m) == "no error"
            for tokens in (1, 2, 4, 8, 11):
                x = place(rng.standard_normal((tokens, shape[1])).astype(np.float32))
                y = place(np.zeros((tokens, shape[0]), np.float32))
                assert_close(t.linear(library, m, x, y), m, x)
            halves = place(t.to_bf16(x))
            t.linear(library, m, halves, place(np.zeros((tokens, shape[0]), np.uint16)), y_kind=BF16)
            for out_kind in (FP32, BF16):
                t.unpack(library, m, 0, shape[0], out_kind=out_kind, place=place)


@pytest.mark.parametrize("kind", t.PACKED, ids=NAMES[: t.INT3])
def test_a_mask_may_be_part_of_a_wider_one(library: Library, kind: int) -> None:
    rng = np.random.default_rng(7)
    m = t.build(rng, kind, (9, 100), keep=t.kept(rng, "random", 9, 100, 0.5))
    wide = np.full((9, 5), 2**64 - 1, np.uint64)
    wide[:, :2] = m.arrays["mask"]
    m.arrays["mask"] = wide
    m.point()
    m.struct.mask_words = 5
    assert t.check(library, m) == "no error"
    x = rng.standard_normal((3, 100)).astype(np.float32)
    assert_close(t.linear(library, m, x), m, x)
    np.testing.assert_array_equal(t.unpack(library, m, 0, 9), m.weight.astype(np.float32))

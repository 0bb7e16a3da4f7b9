from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowdim.core.errors import CheckpointError
from lowdim.core.packing import octets
from lowdim.core.packing.octets import octet_shape, pack_octets, unpack_octets


def drawn(rows: int, cols: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 8, (rows, cols), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


def test_the_bits_of_one_column_by_hand() -> None:
    """Rows 0 to 7 hold 1 to 7 and 5: A is 11|010|001, B 01|100|011, C 1|1|110|101 (high bits of rows 7 and 6 last)."""
    packed = pack_octets(torch.tensor([[1], [2], [3], [4], [5], [6], [7], [5]], dtype=torch.uint8))
    assert packed.shape == (1, 192)
    assert packed[0, [0, 64, 128]].tolist() == [0b11_010_001, 0b01_100_011, 0b1_1_110_101]
    assert int(packed.count_nonzero()) == 3


def test_where_a_column_lies() -> None:
    """Column 70 of row 9 is column 6 of the second word, row 1 of the second block: three bits up in its A."""
    codes = torch.zeros(16, 128, dtype=torch.uint8)
    codes[9, 70] = 5
    packed = pack_octets(codes)
    assert packed.nonzero().tolist() == [[1, 192 + 6]]
    assert int(packed[1, 198]) == 5 << 3


@given(st.integers(0, 30), st.integers(1, 200), st.integers(0, 99))
def test_there_and_back(rows: int, cols: int, seed: int) -> None:
    codes = drawn(rows, cols, seed)
    packed = pack_octets(codes)
    assert tuple(packed.shape) == octet_shape(rows, cols)
    assert torch.equal(unpack_octets(packed, rows, cols), codes)


def test_three_bits_a_weight() -> None:
    assert 8 * pack_octets(drawn(64, 576)).numel() == 3 * 64 * 576


def test_small_chunks_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = drawn(37, 100)
    whole = pack_octets(codes)
    monkeypatch.setattr(octets, "_CHUNK", 1)
    assert torch.equal(pack_octets(codes), whole)
    assert torch.equal(unpack_octets(whole, 37, 100), codes)


def test_refusals() -> None:
    packed = pack_octets(drawn(9, 70))
    with pytest.raises(CheckpointError, match=r"must be uint8 \[2, 384\], got uint8 \[1, 384\]"):
        unpack_octets(packed[:1], 9, 70)
    with pytest.raises(CheckpointError, match=r"must be uint8 \[2, 384\], got int8"):
        unpack_octets(packed.view(torch.int8), 9, 70)
    with pytest.raises(CheckpointError, match="beyond the last row or column"):
        unpack_octets(packed, 8 + 1, 69)
    below = packed.clone()
    below[1, 0] |= 1 << 3  # the second row of a block that has one
    with pytest.raises(CheckpointError, match="beyond the last row or column"):
        unpack_octets(below, 9, 70)

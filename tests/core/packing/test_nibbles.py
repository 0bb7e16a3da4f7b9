import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowdim.core.errors import CheckpointError
from lowdim.core.packing.nibbles import nibble_bytes, pack_nibbles, unpack_nibbles


def example(rows, cols, seed, density):
    g = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 16, (rows, cols), generator=g).to(torch.uint8)
    return codes, torch.rand(rows, cols, generator=g) < density


@given(st.integers(0, 7), st.integers(0, 150), st.integers(0, 2**32), st.sampled_from([0.0, 0.3, 1.0]))
def test_round_trip(rows, cols, seed, density):
    codes, mask = example(rows, cols, seed, density)
    packed = pack_nibbles(codes, mask)
    counts = [*mask.sum(1).tolist(), 0]
    assert (
        len(packed)
        == sum(max(counts[k], counts[k + 1]) for k in range(0, rows, 2))
        == nibble_bytes(mask.sum(1).numpy())
    )
    assert torch.equal(unpack_nibbles(packed, rows, mask), codes * mask)
    dense = pack_nibbles(codes)
    assert dense.shape == ((rows + 1) // 2, cols)
    assert torch.equal(unpack_nibbles(dense, rows), codes)


def test_many_rows_go_in_chunks(monkeypatch):
    codes, mask = example(41, 60, 3, 0.4)
    whole = pack_nibbles(codes, mask)
    monkeypatch.setattr("lowdim.core.packing.nibbles._CHUNK", 240)
    assert torch.equal(pack_nibbles(codes, mask), whole)
    assert torch.equal(unpack_nibbles(whole, 41, mask), codes * mask)


def test_by_hand():
    # rows 0 and 1 have two and one codes: two bytes; row 2 has no partner: its high half is empty
    codes = torch.tensor([[5, 9, 12], [7, 7, 3], [15, 1, 2]], dtype=torch.uint8)
    mask = torch.tensor([[True, False, True], [False, False, True], [False, True, False]])
    assert pack_nibbles(codes, mask).tolist() == [0x35, 0x0C, 0x01]
    assert pack_nibbles(codes).tolist() == [[0x75, 0x79, 0x3C], [0x0F, 0x01, 0x02]]


def test_damage_is_found():
    codes, mask = example(3, 70, 0, 0.5)
    packed = pack_nibbles(codes, mask)
    with pytest.raises(CheckpointError, match=r"must be uint8 \[\d+\], got uint8"):
        unpack_nibbles(packed[1:], 3, mask)
    with pytest.raises(CheckpointError, match="got int16"):
        unpack_nibbles(packed.to(torch.int16), 3, mask)
    packed[-1] |= 16
    with pytest.raises(CheckpointError, match="where there is no weight"):
        unpack_nibbles(packed, 3, mask)
    dense = pack_nibbles(codes)
    with pytest.raises(CheckpointError, match=r"must be uint8 \[3, cols\]"):
        unpack_nibbles(dense, 5)
    dense[-1, 0] |= 16
    with pytest.raises(CheckpointError, match="beyond the last row"):
        unpack_nibbles(dense, 3)

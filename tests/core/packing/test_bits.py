import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowdim.core.packing.bits import pack_bits, unpack_bits, words_per_row


@given(st.integers(0, 5), st.integers(0, 300), st.integers(0, 2**32))
def test_round_trip(rows, cols, seed):
    mask = torch.rand(rows, cols, generator=torch.Generator().manual_seed(seed)) < 0.5
    words = pack_bits(mask)
    assert words.dtype == torch.int64
    assert words.shape == (rows, -(-cols // 128) * 2)
    assert torch.equal(unpack_bits(words, cols), mask)


@pytest.mark.parametrize("column", [0, 1, 62, 63, 64, 127, 128, 190])
def test_bit_j_of_word_w_is_column_64w_plus_j(column):
    mask = torch.zeros(2, 191, dtype=torch.bool)
    mask[1, column] = True
    words = [w % 2**64 for w in pack_bits(mask)[1].tolist()]
    assert words[column // 64] == 1 << column % 64
    assert sum(words) == 1 << column % 64
    assert not pack_bits(mask)[0].any()


def test_padding_is_zero():
    words = pack_bits(torch.ones(1, 65, dtype=torch.bool))
    assert words.tolist() == [[-1, 1]]
    assert pack_bits(torch.ones(1, 129, dtype=torch.bool)).tolist() == [[-1, -1, 1, 0]]


def test_strided_masks_and_words():
    mask = (torch.arange(200 * 6).view(200, 6) % 7 == 0).t()
    words = pack_bits(mask)
    wide = torch.zeros(6, 2 * words.shape[1], dtype=torch.int64)
    wide[:, ::2] = words
    assert torch.equal(unpack_bits(wide[:, ::2], 200), mask)


def test_refusals():
    with pytest.raises(ValueError, match="bool matrix"):
        pack_bits(torch.ones(2, 3))
    with pytest.raises(ValueError, match="bool matrix"):
        pack_bits(torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"int64 \[rows, 4\]"):
        unpack_bits(torch.zeros(2, 2, dtype=torch.int64), 129)
    assert words_per_row(1) == 2

"""Batches, their size in tokens and how they are cut."""

from __future__ import annotations

import pytest
import torch

from lowdim.data.batch import Batch, num_tokens, split
from lowdim.data.errors import DataError


def test_padding_is_not_counted() -> None:
    ids = torch.arange(6).reshape(2, 3)
    masked = Batch(ids, torch.tensor([[0, 1, 1], [1, 1, 1]]))
    assert num_tokens(masked) == 5
    assert num_tokens([masked, Batch(ids)]) == 11


def test_split_keeps_order_and_masks() -> None:
    ids, mask = torch.arange(20).reshape(5, 4), torch.ones(5, 4, dtype=torch.int64)
    mask[4, 0] = 0
    parts = list(split([Batch(ids, mask), Batch(ids[:1])], tokens_per_batch=9))
    assert [len(part) for part in parts] == [2, 2, 1, 1]
    assert torch.equal(torch.cat([part.input_ids for part in parts[:3]]), ids)
    assert torch.equal(torch.cat([part.attention_mask for part in parts[:3]]), mask)
    assert parts[3].attention_mask is None


def test_a_sequence_longer_than_the_limit_stays_whole() -> None:
    assert [len(part) for part in split([Batch(torch.zeros(2, 8, dtype=torch.int64))], 3)] == [1, 1]


def test_split_refuses_an_empty_limit() -> None:
    with pytest.raises(DataError, match="at least 1; got 0"):
        list(split([], 0))


@pytest.mark.parametrize(
    ("ids", "mask", "message"),
    [
        (torch.zeros(3, dtype=torch.int64), None, r"input_ids must be .* got torch.int64 \[3\]"),
        (torch.zeros(1, 3), None, "got torch.float32"),
        ([[1, 2]], None, "got list"),
        (torch.zeros(1, 3, dtype=torch.int64), torch.ones(1, 3, dtype=torch.bool), "attention_mask must be"),
        (torch.zeros(1, 3, dtype=torch.int64), torch.ones(1, 2, dtype=torch.int64), r"\[1, 2\] and \[1, 3\]"),
    ],
)
def test_other_tensors_are_refused(ids: torch.Tensor, mask: torch.Tensor | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Batch(ids, mask)

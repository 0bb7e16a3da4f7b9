"""Paired differences."""

from __future__ import annotations

import math

import pytest
import torch

from lowdim.evaluate.errors import EvaluationError
from lowdim.evaluate.quality.difference import difference, standard_error


def test_by_hand() -> None:
    found = difference(torch.tensor([1.0, 1.0, 1.0]), torch.tensor([2.0, 3.0, 4.0]))
    assert found.mean == 2.0
    assert found.stderr == pytest.approx(1 / math.sqrt(3))


def test_booleans_count_as_zero_and_one() -> None:
    assert difference(torch.tensor([True, True]), torch.tensor([False, True])).mean == -0.5


def test_a_shared_offset_has_no_error() -> None:
    dense = torch.tensor([0.1, 5.0, 9.0])
    assert difference(dense, dense + 1).stderr == pytest.approx(0, abs=1e-6)


def test_one_pair_has_no_standard_error() -> None:
    assert math.isnan(standard_error(torch.tensor([1.0])))


def test_unequal_numbers_are_refused() -> None:
    with pytest.raises(EvaluationError, match="3 results, the sparse 2"):
        difference(torch.zeros(3), torch.zeros(2))

"""The whole way on data whose bias is known: ranks beside the truth, and no alarm where there is no bias."""

from __future__ import annotations

import pytest
import torch

import lowdim
from lowdim.data import classification
from lowdim.data.planted.told import truths
from lowdim.train.compare.measure import auroc


def separation(rank: torch.Tensor, conflicting: torch.Tensor, label: torch.Tensor) -> float:
    """Return the mean over classes of how likely a conflicting sample is ranked behind an aligned one."""
    found = []
    for number in label.unique():
        mine = label == number
        found.append(auroc(rank[mine & conflicting].double(), rank[mine & ~conflicting].double()))
    return sum(found) / len(found)


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["coloured-digits", "textured-digits"])
def test_samples_that_conflict_are_ranked_behind_the_others(name: str) -> None:
    settings = {"conflicting": 0.02}
    found = lowdim.rank(name, settings=settings)
    told = truths(name, settings=settings).train
    assert torch.equal(told.label, classification.load(name, settings=settings).train.y)
    assert separation(found.ranks.rank, told.conflicting()[:, 0], told.label) > 0.9
    assert found.sign.found


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(5))
def test_a_twin_without_a_bias_raises_no_alarm(seed: int) -> None:
    found = lowdim.rank("coloured-digits", settings={"unbiased": True, "seed": seed}, seed=seed)
    assert not found.sign.found and "No sign of a bias" in found.sign.sentence()

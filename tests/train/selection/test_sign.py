"""The test for a bias: it keeps its level where there is none, and finds a second population."""

from __future__ import annotations

import pytest
import torch

from lowdim.train.selection.sign import sign_of_bias


def draws(seed: int, shape: str, count: int = 800) -> torch.Tensor:
    source = torch.Generator().manual_seed(seed)
    if shape == "exponential":  # the heaviest tail that is still no sign
        return 4 + torch.rand(count, generator=source).log()
    return 4 + 2 * torch.randn(count, generator=source)


@pytest.mark.parametrize("shape", ["normal", "exponential"])
def test_there_is_at_most_one_false_alarm_in_20_runs(shape: str) -> None:
    assert sum(sign_of_bias(draws(seed, shape), seed).found for seed in range(20)) <= 1


@pytest.mark.parametrize("share", [0.02, 0.05, 0.1])
def test_a_population_of_its_own_is_a_sign(share: float) -> None:
    margin = draws(0, "exponential", 2000)
    misled = round(share * 2000)
    margin[:misled] = -8 + torch.randn(misled, generator=torch.Generator().manual_seed(1))
    found = sign_of_bias(margin)
    assert found.found and found.misjudged >= misled and found.tail == 500
    assert "A sign of a bias (p = 0.00" in found.sentence()


def test_what_is_judged_too_little_is_not_judged() -> None:
    found = sign_of_bias(torch.randn(40))
    assert found.p is None and not found.found and "needs 20" in found.sentence()


def test_equal_margins_are_no_sign() -> None:
    found = sign_of_bias(torch.ones(200))
    assert not found.found and "No sign of a bias" in found.sentence()


def test_the_same_seed_gives_the_same_chance() -> None:
    margin = draws(3, "exponential")
    assert sign_of_bias(margin, 5) == sign_of_bias(margin, 5)
    assert sign_of_bias(margin, 5).to_dict()["p"] == sign_of_bias(margin, 5).p

"""Every registered sampler: sizes that are kept, orders that seed and epoch decide, memory that brings a run back."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests.train.objectives.crowds import crowd

from lowdim.core import registry
from lowdim.core.random import generator
from lowdim.core.recipe import families
from lowdim.train.samplers.base import Sampler

NAMES = registry.names("sampler")
EPOCHS = 4


def sampler(name: str, **settings: Any) -> Sampler:
    found: Sampler = families.build("sampler", {"name": name, **settings})
    return found


def losses(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return x.abs().sum(1)


def orders(chosen: Sampler, memory: Any, epochs: range) -> list[torch.Tensor]:
    samples, found = crowd(), []
    for epoch in epochs:
        chosen.prepare(samples, memory, epoch, EPOCHS, losses)
        rows = chosen.order(samples, memory, epoch, EPOCHS, generator(0, "order", epoch))
        chosen.told(rows if rows.dim() == 1 else rows[:, 0], torch.linspace(0, 1, len(rows)), memory)
        found.append(rows)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_an_epoch_has_the_samples_that_its_size_says(name: str) -> None:
    chosen = sampler(name)
    rows = orders(chosen, chosen.begin(crowd()), range(EPOCHS))
    assert [len(part) for part in rows] == [chosen.size(40, epoch, EPOCHS) for epoch in range(EPOCHS)]
    assert all(part.dim() == (2 if chosen.pairs else 1) for part in rows)
    assert all(int(part.min()) >= 0 and int(part.max()) < 40 for part in rows)


@pytest.mark.parametrize("name", NAMES)
def test_epochs_that_are_taken_up_again_are_the_same(name: str) -> None:
    chosen = sampler(name)
    memory = chosen.begin(crowd())
    whole = orders(chosen, memory, range(EPOCHS))
    held = chosen.begin(crowd())
    first = orders(chosen, held, range(2))
    second = orders(chosen, copy.deepcopy(held), range(2, EPOCHS))
    assert all(torch.equal(a, b) for a, b in zip(whole, [*first, *second], strict=True))
    assert not all(torch.equal(whole[0], other) for other in whole[1:])


@pytest.mark.parametrize("name", NAMES)
def test_settings_come_back_from_their_description(name: str) -> None:
    chosen = sampler(name)
    assert families.build("sampler", families.describe("sampler", chosen)) == chosen


@pytest.mark.parametrize("name", NAMES)
def test_even_means_every_sample_once(name: str) -> None:
    chosen = sampler(name)
    rows = orders(chosen, chosen.begin(crowd()), range(1))[0]
    once = rows.dim() == 1 and torch.equal(rows.sort().values, torch.arange(40))
    assert not chosen.even or once

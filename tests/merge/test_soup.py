from __future__ import annotations

import pytest
import torch
from tests.models.tickets import Vector, build, every_kind, random_ticket, vector

from lowdim.core.errors import LowdimError
from lowdim.core.random import generator
from lowdim.merge.soup import Soup


def nearness(*target: float):
    goal = torch.tensor(target)
    return lambda model: -float((model.w.detach() - goal).square().sum())


def test_plain_soup_is_the_mean_of_all():
    tickets = [vector(1.0, 5.0), vector(2.0, 6.0), vector(6.0, 1.0)]
    cooked = Soup(greedy=False).cook(Vector(0.0, 0.0), tickets, nearness(0.0, 0.0))
    torch.testing.assert_close(cooked.ticket.state["w"], torch.tensor([3.0, 4.0]))
    assert cooked.ticket.score == pytest.approx(-25.0)
    assert cooked.ingredients == (0, 1, 2)


def test_greedy_soup_starts_with_the_best_and_takes_what_helps():
    # best alone: 2 (distance .5); with 0 the mean is exact; 1 only harms
    tickets = [vector(1.5, 1.0), vector(9.0, 9.0), vector(0.5, 1.0)]
    cooked = Soup().cook(Vector(0.0, 0.0), tickets, nearness(1.0, 1.0))
    assert cooked.ingredients == (0, 2)
    torch.testing.assert_close(cooked.ticket.state["w"], torch.tensor([1.0, 1.0]))
    assert cooked.ticket.score == pytest.approx(0.0)


def test_greedy_soup_takes_what_does_no_harm():
    tickets = [vector(1.0, 1.0), vector(1.0, 1.0)]
    assert Soup().cook(Vector(0.0, 0.0), tickets, nearness(1.0, 1.0)).ingredients == (0, 1)


def test_greedy_soup_is_never_worse_than_its_best_ingredient():
    for seed in range(5):
        draw = generator(seed, "soup")
        tickets = [vector(*torch.randn(6, generator=draw).tolist()) for _ in range(4)]
        goal = torch.randn(6, generator=draw).tolist()
        cooked = Soup().cook(Vector(*[0.0] * 6), tickets, nearness(*goal))
        assert cooked.ticket.score >= max(nearness(*goal)(Vector(*t.state["w"].tolist())) for t in tickets)


@every_kind
def test_one_mask_stays_and_several_are_pruned_exactly(kind):
    x = torch.randn(8, 2, 5, 5, generator=generator(0, "x"))
    for mask_seed in (0, None):
        tickets = [random_ticket(kind, seed, mask_seed=mask_seed) for seed in range(3)]
        cooked = Soup(greedy=False).cook(build(kind), tickets, lambda _: 1.0, batches=[x])
        assert cooked.ticket.masks.kept() == tickets[0].masks.kept()
        assert (cooked.ticket.masks == tickets[0].masks) == (mask_seed == 0)


def test_sparsity_of_your_own():
    tickets = [random_ticket("mlp", seed, kept=kept) for seed, kept in ((0, 0.4), (1, 0.6))]
    with pytest.raises(LowdimError, match="give sparsity"):
        Soup().cook(build("mlp"), tickets, lambda _: 1.0)
    cooked = Soup().cook(build("mlp"), tickets, lambda _: 1.0, sparsity=0.75)
    assert cooked.ticket.masks.kept() == 18  # of 48 + 24
    assert cooked.ingredients == (0, 1)
    with pytest.raises(LowdimError, match="raise sparsity"):
        Soup().cook(build("mlp"), tickets, lambda _: 1.0, sparsity=0.5)

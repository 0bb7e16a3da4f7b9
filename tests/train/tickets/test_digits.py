"""Tickets of a small convolutional net on scikit-learn's digits: the direction of every reducer."""

from __future__ import annotations

from statistics import mean

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from lowdim.core.random import generator
from lowdim.merge.ensemble import ensemble
from lowdim.merge.pools import LotteryPools
from lowdim.merge.soup import Soup
from lowdim.models.norms import refresh_norm
from lowdim.models.ticket import Ticket
from lowdim.train import SparseTraining
from lowdim.train.dynamic.rigl import RigL
from lowdim.train.dynamic.static import Static
from lowdim.train.tickets.collect import TicketCollector
from lowdim.train.tickets.freetickets import FreeTickets, independent_tickets
from lowdim.train.tickets.instant import InstantSoup
from lowdim.train.tickets.lottery import IMP
from lowdim.train.tickets.suptickets import SupTickets

pytestmark = pytest.mark.slow
STEPS, EPOCH = 400, 20


@pytest.fixture(scope="module")
def data():
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    x = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    y = torch.tensor(digits.target)
    order = torch.randperm(len(x), generator=generator(0, "split"))
    parts = order.split([1000, 400, 397])
    return {name: (x[rows], y[rows]) for name, rows in zip(("train", "validation", "test"), parts, strict=True)}


def net(seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
            *(nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU()),
            *(nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)),
        )


def accuracy(model, part):
    mode = model.training
    model.eval()
    with torch.no_grad():
        found = float((model(part[0]).argmax(1) == part[1]).double().mean())
    model.train(mode)
    return found


def train(model, optimizer, part, steps, seed, after=lambda step: None):
    model.train()
    for step in range(steps):
        rows = torch.randint(0, len(part[1]), (64,), generator=generator(seed, "batch", step))
        optimizer.zero_grad()
        cross_entropy(model(part[0][rows]), part[1][rows]).backward()
        optimizer.step()
        after(step)


def collect(data, seed, plan, method):
    """Train at 90% and return the model and its tickets."""
    model = net(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    training = SparseTraining(model, optimizer, sparsity=0.9, method=method, total_steps=STEPS, seed=seed)
    collector = TicketCollector(training, plan)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, plan.lr_factor)

    def after(step):
        scheduler.step()
        collector.step()
        if (step + 1) % EPOCH == 0:
            collector.offer(accuracy(model, data["validation"]))

    train(model, optimizer, data["train"], STEPS, seed, after)
    return model, collector.tickets


def dynamic_run(data, seed, steps=200):
    model = net(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    training = SparseTraining(model, optimizer, sparsity=0.9, method=RigL(every=20), total_steps=steps, seed=seed)
    train(model, optimizer, data["train"], steps, seed)
    return model, training.masks


@pytest.mark.parametrize("seed", range(2))
def test_freetickets_vote_better_than_they_are(data, seed):
    model, tickets = collect(data, seed, FreeTickets().plan(STEPS), RigL(every=20, until=1.0))
    result = ensemble(model, tickets, [data["test"]])
    members = [member.accuracy for member in result.members]
    assert len(members) == 3
    assert min(members) > 0.9
    assert result.quality.accuracy >= mean(members)
    assert result.quality.nll <= mean(member.nll for member in result.members)
    assert result.disagreement > 0
    assert (1 - 0.8) / (1 + 0.8) - 0.01 < result.overlap < 0.5


def test_independent_runs_vote_too_but_their_mean_is_noise(data):
    tickets = independent_tickets(lambda seed: dynamic_run(data, seed), range(3))
    model = net(0)
    result = ensemble(model, tickets, [data["test"]])
    members = [member.accuracy for member in result.members]
    assert result.quality.accuracy >= mean(members) > 0.9
    assert result.overlap < 0.2

    def score(model):
        return accuracy(model, data["validation"])

    batches = data["train"][0].split(125)
    mixed = Soup(greedy=False).cook(model, tickets, score, batches=batches).ticket
    assert mixed.score < 0.8
    # nothing is gained by mixing half of another basin in, and so it is not done
    pooled = LotteryPools(coefficients=(0.5,)).pool(model, tickets, 0, score, batches=batches)
    assert not any(trial.accepted for trial in pooled.trials)
    assert all(torch.equal(pooled.ticket.state[name], tickets[0].state[name]) for name in tickets[0].state)


@pytest.mark.parametrize("average", ["mean", "pruned-mean", "moving"])
def test_suptickets_superposed_work_after_the_norms_are_refreshed(data, average):
    sup = SupTickets(share=0.2, cycle=2, average=average)
    epochs = STEPS // EPOCH
    model, tickets = collect(data, 1, sup.plan(epochs, EPOCH), RigL(every=20, until=sup.until(epochs)))
    alone = []
    for ticket in tickets:
        ticket.apply_(model)
        alone.append(accuracy(model, data["test"]))
    superposed = sup.superpose(tickets)
    assert superposed.masks.kept() == tickets[0].masks.kept()
    superposed.apply_(model)
    refresh_norm(model, data["train"][0].split(125))
    assert len(alone) == 3
    assert accuracy(model, data["test"]) >= mean(alone) - 0.01


def test_lottery_pools_on_rewound_tickets(data):
    model = net(0)
    rounds = IMP(model, rate=0.4, rounds=3, include=["3", "6"])
    tickets = []
    for ticket in rounds:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        training = SparseTraining(model, optimizer, masks=ticket.masks, method=Static())
        seed = 10 + ticket.round
        if ticket.round == 0:
            train(model, optimizer, data["train"], 40, 0)
            rounds.mark(40)
        train(model, optimizer, data["train"], 200, seed)
        tickets.append(Ticket.of(model, training.masks))
        training.remove()
    kept = [ticket.masks.kept() for ticket in tickets]
    assert kept == [round(sum(m.numel() for m in rounds.masks.values()) * 0.6**r) for r in range(4)]

    def score(model):
        return -float(cross_entropy(model(data["validation"][0]), data["validation"][1]))

    pools = LotteryPools(coefficients=(0.1, 0.3, 0.5))
    pooled = pools.pool(model, tickets, 2, score, batches=data["train"][0].split(125))
    tickets[2].apply_(model)
    model.eval()
    with torch.no_grad():
        alone = score(model)
    assert pooled.ticket.score > alone
    assert pooled.ticket.masks.kept() == kept[2]
    assert [t.score for t in pooled.trials if t.accepted] == sorted(t.score for t in pooled.trials if t.accepted)
    # tickets of one basin: halfway between two of them the network still works
    halfway = Soup(greedy=False).cook(
        model,
        tickets[1:3],
        lambda m: accuracy(m, data["validation"]),
        batches=data["train"][0].split(125),
        sparsity=0.64,
    )
    assert halfway.ticket.score > 0.9


def test_instant_soup_prunes_a_net_that_still_learns(data):
    model = net(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    train(model, optimizer, data["train"], 60, 0)

    def some(epochs, seed):
        train(model, optimizer, data["train"], round(EPOCH * epochs), seed)

    found = InstantSoup().prune(model, optimizer, some, 0.8)
    assert found.masks.sparsity() == pytest.approx(0.8, abs=1e-4)
    assert all(0.7 < r.agreement < 1 for r in found.rounds)
    training = SparseTraining(model, optimizer, masks=found.masks, method=Static())
    train(model, optimizer, data["train"], 150, 1)
    assert training.masks == found.masks
    assert accuracy(model, data["test"]) > 0.95

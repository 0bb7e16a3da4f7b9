"""Rows of `sparse_quality.py` about tickets: ensembles and members, mixes of tickets and the best of them."""

from __future__ import annotations

from collections.abc import Callable
from statistics import mean
from typing import Any

import torch
from quality_tasks import Batch, Task, train
from torch import nn
from torch.nn import functional as F

from lowdim.merge.ensemble import Ensemble, ensemble
from lowdim.merge.pools import LotteryPools
from lowdim.models.norms import refresh_norm
from lowdim.models.ticket import Ticket
from lowdim.train import RigL, SparseTraining, Static
from lowdim.train.tickets.collect import TicketCollector
from lowdim.train.tickets.freetickets import FreeTickets
from lowdim.train.tickets.lottery import IMP
from lowdim.train.tickets.plan import Phase, Segment, TicketPlan
from lowdim.train.tickets.suptickets import SupTickets

SPARSITY, EVERY, MEMBERS = 0.95, 50, 3


def batches(task: Task, split: str, limit: int | None = None) -> list[Batch]:
    """Return a part of the data in batches of 500."""
    x, y = getattr(task.data(), split)
    return list(zip(x[:limit].split(500), y[:limit].split(500), strict=True))


def likelihood(task: Task) -> Callable[[nn.Module], float]:
    """Return a score: minus the loss on the validation images, which is steadier than their accuracy."""
    x, y = task.data().validation

    def score(model: nn.Module) -> float:
        model.eval()
        with torch.no_grad():
            return -float(
                torch.cat(
                    [
                        F.cross_entropy(model(a), b, reduction="none")
                        for a, b in zip(x.split(500), y.split(500), strict=True)
                    ]
                ).mean()
            )

    return score


def collect(task: Task, seed: int, plan: TicketPlan, method: Any) -> tuple[nn.Module, tuple[Ticket, ...]]:
    """Train along a plan and return its tickets, chosen by validation accuracy where the plan picks the best."""
    per_epoch = task.steps // task.epochs
    model = task.model(seed)
    optimizer = task.optimizer(model)
    training = SparseTraining(
        model, optimizer, sparsity=SPARSITY, method=method, total_steps=plan.total_steps, seed=seed
    )
    collector = TicketCollector(training, plan)

    def after(step: int) -> None:
        collector.step()
        if step % per_epoch == 0:
            collector.offer(task.accuracy(model, "validation"))

    train(task, model, optimizer, task.batches(seed, plan.total_steps // per_epoch), plan.lr_factor, after)
    return model, collector.tickets


def compared(found: Ensemble) -> dict[str, Any]:
    """Return an ensemble beside its members."""
    return {
        "ensemble accuracy": found.quality.accuracy,
        "mean member accuracy": mean(member.accuracy for member in found.members),
        "best member accuracy": max(member.accuracy for member in found.members),
        "ensemble loss": found.quality.nll,
        "mean member loss": mean(member.nll for member in found.members),
        "ensemble calibration error": found.quality.ece,
        "mean member calibration error": mean(member.ece for member in found.members),
        "disagreement": found.disagreement,
        "mask overlap": found.overlap,
    }


def independent(task: Task, seed: int) -> dict[str, Any]:
    """Three runs of RigL from different seeds vote."""
    whole = TicketPlan((Phase("run", 0, task.steps, pick="last"),), (Segment(0, task.steps, 1.0, 1.0),))
    tickets = []
    for member in range(MEMBERS):
        model = task.model(MEMBERS * seed + member)
        optimizer = task.optimizer(model)
        training = SparseTraining(
            model,
            optimizer,
            sparsity=SPARSITY,
            method=RigL(every=EVERY),
            total_steps=task.steps,
            seed=MEMBERS * seed + member,
        )
        collector = TicketCollector(training, whole)
        train(
            task,
            model,
            optimizer,
            task.batches(MEMBERS * seed + member),
            task.factor,
            lambda _, c=collector: c.step(),
        )
        tickets += collector.tickets
    return compared(ensemble(model, tickets, batches(task, "test")))


def free(task: Task, seed: int) -> dict[str, Any]:
    """FreeTickets: one run, 1.8 times as long (the paper's 450 epochs for 250), three tickets vote."""
    per_epoch = task.steps // task.epochs
    plan = FreeTickets(tickets=MEMBERS).plan(round(1.8 * task.epochs) * per_epoch)
    model, tickets = collect(task, seed, plan, RigL(every=EVERY, until=1.0, schedule="constant", drop=0.5))
    return compared(ensemble(model, tickets, batches(task, "test")))


def superposed(task: Task, seed: int) -> dict[str, Any]:
    """Sup-tickets: the last 40% of a run in cycles of two epochs; their mean against each of them."""
    sup = SupTickets(share=0.4, cycle=2)
    method = RigL(every=EVERY, until=sup.until(task.epochs))
    model, tickets = collect(task, seed, sup.plan(task.epochs, task.steps // task.epochs), method)
    return {
        "superposed accuracy": _tested(task, model, sup.superpose(tickets), refresh=True),
        **_alone(task, model, tickets),
    }


def pooled(task: Task, seed: int) -> dict[str, Any]:
    """Lottery Pools: seven tickets of iterative pruning, rewound to the third epoch; each target against its pool."""
    per_epoch, late = task.steps // task.epochs, 3
    model = task.model(seed)
    rounds = IMP(model, rate=0.4, rounds=6)
    tickets = []
    for ticket in rounds:
        optimizer = task.optimizer(model)
        training = SparseTraining(model, optimizer, masks=ticket.masks, method=Static())
        order = task.batches(100 * seed + ticket.round)
        if ticket.round == 0:
            for _ in range(late):
                train(task, model, optimizer, (next(order) for _ in range(per_epoch)), task.factor)
            rounds.mark(late * per_epoch)
        left = (next(order) for _ in range(task.steps - late * per_epoch))
        train(task, model, optimizer, left, lambda step: task.factor(step + late * per_epoch))
        tickets.append(Ticket.of(model, ticket.masks))
        training.remove()
    found: dict[str, Any] = {}
    for target in (2, 4, 6):
        result = LotteryPools().pool(model, tickets, target, likelihood(task), batches=batches(task, "train", 5000))
        zeros = f"{tickets[target].masks.sparsity():.0%} zeros"
        found[f"ticket accuracy, {zeros}"] = _tested(task, model, tickets[target])
        found[f"pooled accuracy, {zeros}"] = _tested(task, model, result.ticket)
        found[f"mixed in, {zeros}"] = sum(trial.accepted for trial in result.trials)
    return found


def _alone(task: Task, model: nn.Module, tickets: tuple[Ticket, ...]) -> dict[str, float]:
    alone = [_tested(task, model, ticket) for ticket in tickets]
    return {
        "mean ticket accuracy": mean(alone),
        "best ticket accuracy": max(alone),
        "last ticket accuracy": alone[-1],
    }


def _tested(task: Task, model: nn.Module, ticket: Ticket, *, refresh: bool = False) -> float:
    ticket.apply_(model)
    if refresh:
        refresh_norm(model, batches(task, "train"))
    return task.accuracy(model)


TICKETS: dict[str, tuple[str, Callable[[Task, int], dict[str, Any]]]] = {
    "ensemble": ("mlp", independent),
    "free-tickets": ("mlp", free),
    "sup-tickets": ("mlp", superposed),
    "lottery-pools": ("mlp", pooled),
}

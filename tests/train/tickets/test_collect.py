from __future__ import annotations

import math

import pytest
import torch
from tests.models.tickets import build

from lowdim.core.errors import LowdimError
from lowdim.core.random import generator
from lowdim.merge.combine import iou
from lowdim.train import SparseTraining
from lowdim.train.dynamic.rigl import RigL
from lowdim.train.dynamic.set import SET
from lowdim.train.dynamic.static import Static
from lowdim.train.tickets.collect import TicketCollector
from lowdim.train.tickets.freetickets import FreeTickets
from lowdim.train.tickets.plan import Phase, Segment, TicketPlan
from lowdim.train.tickets.suptickets import SupTickets

X = torch.randn(512, 2, 5, 5, generator=generator(0, "x"))
Y = torch.randint(0, 3, (512,), generator=generator(0, "y"))


class Run:
    """A convolutional net in training, one batch per step, each step's batch a function of its number."""

    def __init__(self, plan=None, method=None, total=20, kind="conv"):
        self.model = build(kind)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9)
        self.training = SparseTraining(
            self.model,
            self.optimizer,
            sparsity=0.5,
            method=method or Static(),
            total_steps=total,
            include=["*"],
        )
        self.collector = TicketCollector(self.training, plan) if plan else None
        factor = plan.lr_factor if plan else lambda _: 1.0
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, factor)

    def go(self, steps, offers=None):
        for _ in range(steps):
            rows = torch.randint(0, 512, (16,), generator=generator(self.training.step, "batch"))
            self.optimizer.zero_grad()
            torch.nn.functional.cross_entropy(self.model(X[rows]), Y[rows]).backward()
            self.optimizer.step()
            self.scheduler.step()
            if self.collector:
                self.collector.step()
            if offers and self.training.step in offers:
                self.collector.offer(offers[self.training.step])
        return self

    def state(self):
        return {name: tensor.clone() for name, tensor in self.model.state_dict().items()}


def equal(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


def flat_plan(*phases):
    """Phases under a constant rate."""
    return TicketPlan(phases, (Segment(0, phases[-1].end, 1.0, 1.0),))


def test_one_ticket_is_plain_dynamic_training():
    plan = flat_plan(Phase("refine 0", 0, 20, pick="best"))
    assert FreeTickets(tickets=1, explore=0.0).plan(20).phases == plan.phases
    run, plain = Run(plan, RigL(every=4)).go(20), Run(None, RigL(every=4)).go(20)
    assert equal(run.state(), plain.state())
    (ticket,) = run.collector.tickets
    assert equal(ticket.state, plain.state())
    assert ticket.masks == plain.training.masks
    assert ticket.step == 20


def test_freetickets_shakes_between_refinements_only():
    plan = FreeTickets(tickets=3, explore=0.25, shake=0.8).plan(20)
    run = Run(plan, SET(every=1000)).go(20)
    assert [entry["step"] for entry in run.training.history] == [11, 16]
    assert [ticket.step for ticket in run.collector.tickets] == [10, 15, 20]
    for entry in run.training.history:
        kept = {layer.name: layer.kept for layer in run.training.layers}
        assert entry["kept"] == kept
        # those dropped and drawn again at once are not counted
        assert 0.2 * sum(kept.values()) < sum(entry["dropped"].values()) <= 0.8 * sum(kept.values())


@pytest.mark.parametrize("method", [SET(every=1000), RigL(every=1000)])
def test_masks_a_shake_apart_overlap_by_the_bound(method):
    plan = flat_plan(Phase("a", 0, 5, pick="last"), Phase("b", 5, 6, 0.8, "last"))
    run = Run(plan, method, total=6).go(6)
    first, second = run.collector.tickets
    assert first.masks.kept() == second.masks.kept()
    # a whole number of weights is dropped per layer, so that the bound may be missed by a few of them
    slack = 2 * len(run.training.layers) / (1.8 * first.masks.kept())
    assert iou(first.masks, second.masks) >= (1 - 0.8) / (1 + 0.8) - slack
    assert iou(first.masks, second.masks) < 1


def test_best_of_a_phase_is_kept_and_the_best_starts_anew_with_each_phase():
    plan = FreeTickets(tickets=2, explore=0.5).plan(20)
    offers = {5: 0.99, 10: 0.98, 11: 0.4, 13: 0.6, 15: 0.6, 16: 0.2, 18: 0.3, 20: math.nan}
    run = Run(plan).go(20, offers)
    assert [(t.step, t.score) for t in run.collector.tickets] == [(13, 0.6), (18, 0.3)]
    assert equal(run.collector.tickets[0].state, Run(plan).go(13).state())


def test_a_score_at_the_end_of_a_phase_belongs_to_that_phase_whichever_is_called_first():
    plan = flat_plan(Phase("a", 0, 5, pick="best"), Phase("b", 5, 10, 0.5, pick="best"))
    after = Run(plan).go(5)
    assert after.collector.tickets[0].score is None
    assert after.collector.offer(0.5)
    assert not after.collector.offer(0.5)
    before = Run(plan)
    before.collector = None
    before.go(5)
    collector = TicketCollector(before.training, plan)
    collector._seen = 4
    assert collector.offer(0.5)
    collector.step()
    for found in (after.collector, collector):
        assert [(t.step, t.score) for t in found.tickets] == [(5, 0.5)]


def test_suptickets_takes_the_last_weights_and_trains_on_from_them():
    sup = SupTickets(share=0.4, cycle=2)
    plan = sup.plan(epochs=20)
    run = Run(plan, SET(every=3, until=sup.until(20))).go(20)
    assert [ticket.step for ticket in run.collector.tickets] == [12, 14, 16, 18, 20]
    assert [entry["step"] for entry in run.training.history] == [3, 6, 9, 12, 13, 15, 17, 19]
    assert equal(run.collector.tickets[-1].state, run.state())
    superposed = sup.superpose(run.collector.tickets)
    assert superposed.masks.kept() == run.training.masks.kept()
    assert equal(run.collector.tickets[-1].state, run.state())
    assert run.collector.offer(0.75)
    assert run.collector.tickets[-1].score == 0.75


def test_the_rate_follows_the_plan():
    plan = SupTickets(share=0.5, cycle=4).plan(8, 2)
    run = Run(plan, total=16)
    seen = []
    for _ in range(16):
        seen.append(run.optimizer.param_groups[0]["lr"] / 0.05)
        run.go(1)
    assert seen == pytest.approx([plan.lr_factor(step) for step in range(16)])


def test_calling_step_again_changes_nothing():
    plan = flat_plan(Phase("a", 0, 5, pick="last"), Phase("b", 5, 10, 0.5, pick="last"))
    run = Run(plan, SET(every=1000)).go(5)
    ticket = run.collector.tickets[0]
    run.collector.step()
    assert run.collector.tickets[0] is ticket
    run.go(1)
    run.collector.step()
    run.go(4)
    assert [entry["step"] for entry in run.training.history] == [6]


def test_missing_the_end_of_a_phase_is_an_error():
    plan = flat_plan(Phase("a", 0, 5, pick="last"), Phase("b", 5, 10, pick="last"))
    run = Run(plan)
    collector, run.collector = run.collector, None
    run.go(4)
    collector.step()
    run.go(3)
    with pytest.raises(LowdimError, match="'a' ended at step 5, now it is step 7: call step"):
        collector.step()


def test_nothing_is_offered_before_the_first_step_or_in_a_phase_without_a_ticket():
    plan = FreeTickets(tickets=1, explore=0.5).plan(20)
    run = Run(plan)
    assert not run.collector.offer(1.0)
    run.go(3)
    assert not run.collector.offer(1.0)
    assert run.collector.tickets == ()


def test_resumes_bit_exactly(tmp_path):
    plan = FreeTickets(tickets=3, explore=0.25).plan(20)
    offers = {7: 0.5, 12: 0.7, 14: 0.6, 18: 0.1}
    whole = Run(plan, RigL(every=4)).go(20, offers)
    for stop in (9, 10, 13):
        run = Run(plan, RigL(every=4)).go(stop, offers)
        parts = ("model", "optimizer", "training", "scheduler", "collector")
        torch.save({name: getattr(run, name).state_dict() for name in parts}, tmp_path / "run.pt")
        held = torch.load(tmp_path / "run.pt", weights_only=True)
        again = Run(plan, RigL(every=4))
        for name in parts:
            getattr(again, name).load_state_dict(held[name])
        again.go(20 - stop, offers)
        assert equal(again.state(), whole.state())
        assert [(t.step, t.score) for t in again.collector.tickets] == [(7, 0.5), (12, 0.7), (18, 0.1)]
        for a, b in zip(again.collector.tickets, whole.collector.tickets, strict=True):
            assert a.masks == b.masks
            assert equal(a.state, b.state)


def test_a_state_of_another_plan_is_refused():
    run = Run(FreeTickets(tickets=3, explore=0.25).plan(20)).go(20)
    other = Run(SupTickets(share=0.4, cycle=2).plan(20))
    with pytest.raises(LowdimError, match="which this plan does not have"):
        other.collector.load_state_dict(run.collector.state_dict())


def test_a_ticket_starts_a_new_training():
    run = Run(flat_plan(Phase("a", 0, 5, pick="last"))).go(5)
    (ticket,) = run.collector.tickets
    model = build("conv", 3)
    ticket.apply_(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    training = SparseTraining(model, optimizer, masks=ticket.masks, method=Static())
    assert training.masks == ticket.masks
    assert equal(dict(model.state_dict()), ticket.state)

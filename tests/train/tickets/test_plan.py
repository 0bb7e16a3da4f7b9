from __future__ import annotations

from itertools import pairwise

import pytest

from lowdim.core.errors import LowdimError, RecipeError
from lowdim.train.tickets.freetickets import FreeTickets
from lowdim.train.tickets.suptickets import SupTickets


def changes(plan):
    """Return (step, factor) wherever the rate changes."""
    rates = [plan.lr_factor(step) for step in range(plan.total_steps)]
    return [(step, rates[step]) for step in range(1, len(rates)) if rates[step] != rates[step - 1]]


def test_freetickets_published_recipe_for_cifar():
    plan = FreeTickets(tickets=3, explore=150 / 450).plan(450)
    assert changes(plan) == [(150, 0.1), (200, 0.01), (250, 0.1), (300, 0.01), (350, 0.1), (400, 0.01)]
    assert [(p.start, p.end, p.shake, p.pick) for p in plan.phases] == [
        (0, 150, 0.0, "none"),
        (150, 250, 0.0, "best"),
        (250, 350, 0.8, "best"),
        (350, 450, 0.8, "best"),
    ]


def test_freetickets_rounds_up_where_the_published_runs_did():
    # (T - T_e) / M = 100 / 3 epochs: ceil of 183.3, 216.7; halves at ceil of 166.7, 200, 233.3
    plan = FreeTickets(tickets=3, explore=0.6).plan(250)
    assert [p.start for p in plan.phases] == [0, 150, 184, 217]
    assert [step for step, _ in changes(plan)] == [150, 167, 184, 200, 217, 234]
    assert plan.total_steps == 250


def test_freetickets_without_exploration_and_with_one_ticket_is_one_phase():
    plan = FreeTickets(tickets=1, explore=0.0).plan(10)
    assert [(p.name, p.start, p.end, p.shake) for p in plan.phases] == [("refine 0", 0, 10, 0.0)]
    assert changes(plan) == [(5, 0.01)]


def test_suptickets_published_recipe_for_cifar():
    plan = SupTickets(share=0.1, cycle=8).plan(250)
    normal, *cycles = plan.phases
    assert (normal.start, normal.end, normal.shake, normal.pick) == (0, 226, 0.0, "last")
    assert [(c.start, c.end, c.shake, c.pick) for c in cycles] == [
        (start, start + 8, 0.5, "last") for start in (226, 234, 242)
    ]
    # milestones int(.5 * 226) and int(.75 * 226)
    assert [(s, pytest.approx(f)) for s, f in changes(plan) if s < 226] == [(113, 0.1), (169, 0.01)]
    assert SupTickets().until(250) * 250 == pytest.approx(226)


@pytest.mark.parametrize("steps_per_epoch", [1, 3, 10])
@pytest.mark.parametrize("cycle", [1, 4, 5, 8])
def test_suptickets_rate_is_the_papers_triangle(cycle, steps_per_epoch):
    sup = SupTickets(share=0.2, cycle=cycle, low=0.01, high=0.05)
    plan = sup.plan(40, steps_per_epoch)
    begin = plan.phases[0].end
    assert begin == (40 - 8 // cycle * cycle) * steps_per_epoch
    for step in range(begin, plan.total_steps):
        t = (step - begin) % (cycle * steps_per_epoch) / (cycle * steps_per_epoch)
        expected = 0.01 * (1 - 2 * t) + 0.05 * 2 * t if t < 0.5 else 0.01 * (2 * t - 1) + 0.05 * (2 - 2 * t)
        assert plan.lr_factor(step) == pytest.approx(expected)


@pytest.mark.parametrize("share", [0.1, 0.2, 0.3, 0.7])
def test_decimal_shares_do_not_lose_a_cycle_to_rounding(share):
    assert len(SupTickets(share=share, cycle=1).plan(10).phases) == 1 + round(10 * share)


def test_after_the_end_the_last_phase_and_rate_hold():
    plan = FreeTickets().plan(450)
    assert plan.phase(10_000).name == "refine 2"
    assert plan.lr_factor(10_000) == 0.01
    with pytest.raises(LowdimError, match="counts from 0; got -1"):
        plan.phase(-1)


def test_phases_cover_the_run_without_gaps():
    for plan in (
        FreeTickets(tickets=7, explore=0.37).plan(1001),
        SupTickets(share=0.33, cycle=3).plan(101, 7),
    ):
        assert plan.phases[0].start == plan.rate[0].start == 0
        for pieces in (plan.phases, plan.rate):
            assert all(a.end == b.start for a, b in pairwise(pieces))
        assert plan.phases[-1].end == plan.rate[-1].end


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        (FreeTickets, {"tickets": 0}),
        (FreeTickets, {"explore": 1.0}),
        (FreeTickets, {"shake": 1.0}),
        (FreeTickets, {"refine": 0.0}),
        (SupTickets, {"share": 0.0}),
        (SupTickets, {"cycle": 0}),
        (SupTickets, {"shake": -0.1}),
        (SupTickets, {"milestones": (0.75, 0.5)}),
        (SupTickets, {"average": "median"}),
        (SupTickets, {"factor": 0.0}),
    ],
)
def test_bad_settings_are_refused(method, settings):
    with pytest.raises(RecipeError, match=next(iter(settings))):
        method(**settings)


def test_runs_too_short_are_refused():
    with pytest.raises(RecipeError, match="5 steps after exploration for 3 refinements"):
        FreeTickets(explore=0.5).plan(10)
    with pytest.raises(RecipeError, match="holds no cycle of 8 epochs"):
        SupTickets().plan(79)

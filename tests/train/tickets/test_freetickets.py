from __future__ import annotations

import pytest
from tests.train.tickets.plans import changes

from lowdim.core.errors import RecipeError
from lowdim.train.tickets.freetickets import FreeTickets


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


@pytest.mark.parametrize(
    "settings",
    [{"tickets": 0}, {"explore": 1.0}, {"shake": 1.0}, {"refine": 0.0}, {"final": 0.0}],
)
def test_bad_settings_are_refused(settings):
    with pytest.raises(RecipeError, match=next(iter(settings))):
        FreeTickets(**settings)


def test_runs_too_short_are_refused():
    with pytest.raises(RecipeError, match="5 steps after exploration for 3 refinements"):
        FreeTickets(explore=0.5).plan(10)

from __future__ import annotations

import pytest
import torch
from tests.models.tickets import every_kind, random_ticket, vector
from tests.train.tickets.plans import changes

from lowdim.core.errors import LowdimError, RecipeError
from lowdim.merge.combine import mix
from lowdim.train.tickets.suptickets import SupTickets


@every_kind
def test_mean_after_n_cycles_is_the_mean_of_all_tickets(kind):
    tickets = [random_ticket(kind, seed, mask_seed=0) for seed in range(4)]
    for count in range(1, 5):
        found = SupTickets().superpose(tickets[:count])
        expected = mix(tickets[:count], [1 / count] * count)
        assert found.masks == tickets[0].masks
        for name, tensor in found.state.items():
            torch.testing.assert_close(tensor, expected[name], atol=1e-6, rtol=1e-6)


@every_kind
def test_one_ticket_is_itself(kind):
    ticket = random_ticket(kind, 0)
    for average in ("mean", "pruned-mean", "moving"):
        found = SupTickets(average=average).superpose([ticket])
        assert found.masks == ticket.masks
        assert all(torch.equal(found.state[name], ticket.state[name]) for name in ticket.state)


@pytest.mark.parametrize("average", ["mean", "pruned-mean", "moving"])
@every_kind
def test_density_is_exact(kind, average):
    tickets = [random_ticket(kind, seed) for seed in range(4)]
    assert SupTickets(average=average).superpose(tickets).masks.kept() == tickets[0].masks.kept()
    sparser = SupTickets(average=average).superpose(tickets, sparsity=0.9)
    total = sum(mask.numel() for mask in sparser.masks.values())
    assert sparser.masks.kept() == round(0.1 * total)


def test_averages_by_hand():
    tickets = [vector(8.0, 1.0), vector(4.0, 1.0), vector(2.0, 1.0)]
    made = {"mean": SupTickets(), "moving": SupTickets(average="moving", factor=0.25)}
    found = {a: each.superpose(tickets).state["w"][0] for a, each in made.items()}
    assert float(found["mean"]) == pytest.approx(14 / 3)
    assert float(found["moving"]) == pytest.approx(0.75 * (0.75 * 8 + 0.25 * 4) + 0.25 * 2)


def test_the_running_pruned_mean_forgets_what_it_pruned():
    tickets = [vector(2.0, 0.0, 0.0), vector(0.0, 3.0, 0.0), vector(2.5, 0.0, 0.0)]
    torch.testing.assert_close(SupTickets().superpose(tickets).state["w"], torch.tensor([1.5, 0.0, 0.0]))
    pruned = SupTickets(average="pruned-mean").superpose(tickets)
    torch.testing.assert_close(pruned.state["w"], torch.tensor([0.0, 1.0, 0.0]))


def test_tickets_are_not_changed():
    tickets = [random_ticket("conv", seed) for seed in range(2)]
    before = [{name: tensor.clone() for name, tensor in t.state.items()} for t in tickets]
    SupTickets().superpose(tickets)
    for ticket, held in zip(tickets, before, strict=True):
        assert all(torch.equal(ticket.state[name], held[name]) for name in held)


def test_no_tickets_or_unequal_ones_are_refused():
    with pytest.raises(LowdimError, match="no tickets"):
        SupTickets().superpose([])
    with pytest.raises(LowdimError, match="give sparsity"):
        SupTickets().superpose([vector(1.0, 1.0), vector(1.0, 0.0)])


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


@pytest.mark.parametrize(
    "settings",
    [
        {"share": 0.0},
        {"cycle": 0},
        {"shake": -0.1},
        {"milestones": (0.75, 0.5)},
        {"average": "median"},
        {"factor": 0.0},
    ],
)
def test_bad_settings_are_refused(settings):
    with pytest.raises(RecipeError, match=next(iter(settings))):
        SupTickets(**settings)


def test_runs_too_short_are_refused():
    with pytest.raises(RecipeError, match="holds no cycle of 8 epochs"):
        SupTickets().plan(79)

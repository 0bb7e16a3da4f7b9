from __future__ import annotations

import pytest
import torch
from tests.models.tickets import Vector, build, every_kind, random_ticket, vector

from lowdim.core.errors import LowdimError, RecipeError
from lowdim.core.random import generator
from lowdim.merge.pools import LotteryPools


def nearness(*target: float):
    """Score a vector by minus its squared distance to a point."""
    goal = torch.tensor(target)
    return lambda model: -float((model.w.detach() - goal).square().sum())


def test_order_is_by_distance_with_the_denser_first():
    pools = LotteryPools()
    assert pools.order(2, 6) == (1, 3, 0, 4, 5)
    assert pools.order(0, 3) == (1, 2)
    assert pools.order(3, 4) == (2, 1, 0)
    assert pools.order(0, 1) == ()
    assert LotteryPools(search=3).order(2, 6) == (1, 3)
    with pytest.raises(LowdimError, match="target must be the index of one of 3 tickets; got 3"):
        pools.order(3, 3)


@every_kind
def test_coefficient_zero_returns_the_ticket(kind):
    tickets = [random_ticket(kind, seed) for seed in range(3)]
    model = build(kind)
    model.eval()
    # norm statistics apart, no trial can differ from the ticket
    x = torch.randn(8, 2, 5, 5, generator=generator(0, "x"))
    pooled = LotteryPools(coefficients=(0.0,)).pool(model, tickets, 1, lambda _: 1.0, batches=[x])
    assert pooled.ticket.masks == tickets[1].masks
    assert all(torch.equal(pooled.ticket.state[name], tickets[1].state[name]) for name in tickets[1].state)
    assert not any(trial.accepted for trial in pooled.trials)
    assert len(pooled.trials) == 2


def test_quadratic_loss_has_the_closed_form():
    # loss |w - c|^2 on the line from w_j = (0, 2) to w_c = (4, 2): the best a is <c - w_j, d> / |d|^2
    tickets = [vector(4.0, 2.0, mask=(1, 1)), vector(0.0, 2.0, mask=(1, 1))]
    coefficients = tuple(k / 20 for k in range(21))
    for goal, best in (((1.0, 3.0), 0.25), ((3.0, 0.0), 0.75), ((-1.0, 2.0), 0.0), ((9.0, 9.0), 1.0)):
        pooled = LotteryPools(coefficients).pool(Vector(0.0, 0.0), tickets, 1, nearness(*goal))
        torch.testing.assert_close(pooled.ticket.state["w"], torch.tensor([4 * best, 2.0]))
        scores = [trial.score for trial in pooled.trials]
        expected = [-((4 * a - goal[0]) ** 2) - (2 - goal[1]) ** 2 for a in coefficients]
        assert scores == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_accepted_scores_never_fall_and_losers_are_not_mixed_in():
    tickets = [vector(9.0, 9.0), vector(1.0, 0.5), vector(0.5, 1.5), vector(-9.0, 9.0)]
    pooled = LotteryPools().pool(Vector(0.0, 0.0), tickets, 1, nearness(0.8, 1.0))
    accepted = [trial for trial in pooled.trials if trial.accepted]
    scores = [nearness(0.8, 1.0)(Vector(1.0, 0.5)), *(trial.score for trial in accepted)]
    assert scores == sorted(scores)
    assert pooled.ticket.score == scores[-1]
    # one trial of a candidate at most, and it is that candidate's best
    assert len({trial.candidate for trial in accepted}) == len(accepted)
    assert 2 in {trial.candidate for trial in accepted}
    assert 3 not in {trial.candidate for trial in accepted}
    for trial in accepted:
        assert trial.score == max(t.score for t in pooled.trials if t.candidate == trial.candidate)


def test_the_result_keeps_as_many_weights_as_its_target():
    dense, middle, sparse = (random_ticket("mlp", 1, kept=kept) for kept in (1.0, 0.6, 0.3))
    better = iter(range(100))
    for index, ticket in enumerate((dense, middle, sparse)):
        pooled = LotteryPools((0.5,)).pool(build("mlp"), [dense, middle, sparse], index, lambda _: next(better))
        assert pooled.ticket.masks.kept() == ticket.masks.kept()
        assert all(trial.accepted for trial in pooled.trials)
    assert dense.masks.sparsity() == 0


def test_norms_are_refreshed_before_every_score():
    tickets = [random_ticket("conv", seed) for seed in range(2)]
    x = torch.randn(16, 2, 5, 5, generator=generator(0, "x"))
    seen = []

    def validate(model):
        assert not model.training
        seen.append((model[1].running_mean - model[0](x).mean(dim=(0, 2, 3))).abs().max().item())
        return len(seen)

    pooled = LotteryPools((0.3, 0.6)).pool(build("conv"), tickets, 0, validate, batches=[x])
    assert seen[0] > 0.1  # the ticket's own statistics
    assert max(seen[1:]) < 1e-5
    model = build("conv")
    pooled.ticket.apply_(model)
    torch.testing.assert_close(model[1].running_mean, model[0](x).mean(dim=(0, 2, 3)), atol=1e-5, rtol=0)


def test_norms_without_data_are_refused():
    tickets = [random_ticket("conv", seed) for seed in range(2)]
    model = build("conv", 7)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(LowdimError, match="give batches of training data"):
        LotteryPools().pool(model, tickets, 0, lambda _: 0.0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_score_that_is_nan_never_wins():
    tickets = [vector(1.0, 1.0), vector(3.0, 3.0)]
    values = iter([0.5, float("nan"), 0.4])
    pooled = LotteryPools((0.3, 0.6)).pool(Vector(0.0, 0.0), tickets, 0, lambda _: next(values))
    assert torch.equal(pooled.ticket.state["w"], torch.tensor([1.0, 1.0]))
    assert pooled.ticket.score == 0.5


def test_baselines_by_hand():
    tickets = [vector(8.0, 1.0), vector(0.0, 4.0, mask=(1, 1)), vector(4.0, 1.0)]
    swa = LotteryPools().average(tickets, 1)
    torch.testing.assert_close(swa.state["w"], torch.tensor([4.0, 2.0]))
    # ticket 1, then 0, then 2, each new one with 3/4
    ema = LotteryPools().average(tickets, 1, factor=0.75)
    torch.testing.assert_close(ema.state["w"], torch.tensor([0.25 * 6 + 3, 0.25 * 1.75 + 0.75]))


@pytest.mark.parametrize("settings", [{"coefficients": ()}, {"coefficients": (1.5,)}, {"search": 0}])
def test_bad_settings_are_refused(settings):
    with pytest.raises(RecipeError, match=next(iter(settings))):
        LotteryPools(**settings)

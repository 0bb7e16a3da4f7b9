"""Sebra's ranking: the hand-computed weights, exact termination, judging without training's own state, resuming."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from lowdim.core.errors import RecipeError
from lowdim.data.classification import Dataset
from lowdim.data.errors import DataError
from lowdim.data.raw import Split
from lowdim.train.dynamic.set import SET
from lowdim.train.selection.sebra import Sebra
from lowdim.train.selection.sebra_ranking import RankWarning, weighted, weights
from lowdim.train.sparse.training import SparseTraining

QUICK = Sebra(lr=0.01, epochs=30, batch=32)


def data(count: int = 200, conflicting: float = 0.1) -> Dataset:
    """Two classes; the first number is a clear cue, wrong for some, the rest of them a faint truth."""
    source = torch.Generator().manual_seed(0)
    y = torch.arange(count) % 2
    cue = torch.where(torch.arange(count) < conflicting * count, 1 - y, y)
    truth = torch.randn(count, 8, generator=source) * 0.5 + (2 * y - 1).unsqueeze(1) * 0.4
    x = torch.cat([4.0 * (2 * cue - 1).unsqueeze(1), truth], 1)
    split = Split(x, y)
    return Dataset("made", "table", split, split, split, ("a", "b"))


def net(seed: int = 0, norm: bool = True) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        middle = nn.BatchNorm1d(16) if norm else nn.Identity()
        return nn.Sequential(nn.Linear(9, 16), middle, nn.ReLU(), nn.Linear(16, 2))


def test_the_weights_of_the_paper_by_hand() -> None:
    assert [round(u, 4) for u in weights(torch.tensor([0.5, 0.1]), 0.7).tolist()] == [0.6156, 0.1995]
    logits = torch.log(torch.tensor([[0.5, 0.5], [0.1, 0.9]]))
    found = weighted(logits, torch.tensor([0, 0]), 0.7)
    assert [round(loss, 4) for loss in found.tolist()] == [0.4267, 0.4594]


def test_beta_0_is_cross_entropy_with_its_gradient() -> None:
    logits = torch.randn(5, 3, requires_grad=True)
    label = torch.tensor([0, 1, 2, 0, 1])
    ours, plain = weighted(logits, label, 0.0).mean(), nn.functional.cross_entropy(logits, label)
    assert torch.allclose(ours, plain)
    assert torch.allclose(*(torch.autograd.grad(loss, logits)[0] for loss in (ours, plain)))


def test_the_weight_is_a_constant_of_the_gradient() -> None:
    logits = torch.randn(4, 3, requires_grad=True)
    label = torch.tensor([0, 1, 2, 0])
    p = logits.softmax(1).gather(1, label.unsqueeze(1)).squeeze(1).detach()
    (gradient,) = torch.autograd.grad(weighted(logits, label, 0.7).sum(), logits)
    wanted = (p**0.7).unsqueeze(1) * (logits.softmax(1) - nn.functional.one_hot(label, 3)).detach()
    assert torch.allclose(gradient, wanted, atol=1e-6)


def test_p_crit_0_ranks_all_first_and_says_that_this_tells_nothing() -> None:
    with pytest.warns(RankWarning, match="all 200 samples were ranked in epoch 1"):
        ranks = replace(QUICK, p_crit=0.0).rank(net(), data())
    assert ranks.rank.unique().tolist() == [1]
    assert ranks.facts["epochs"] == 1 and ranks.facts["ended"] == "all samples are ranked"
    with pytest.raises(DataError, match="share one rank"):
        ranks.groups()


def test_what_has_the_cue_is_ranked_before_what_conflicts_with_it() -> None:
    ranks = QUICK.rank(net(), data())
    conflicting = torch.arange(200) < 20
    assert float(ranks.rank[~conflicting].double().mean()) < 0.5 * float(ranks.rank[conflicting].double().mean())
    assert ranks.facts["ranked"][0] > 0 and ranks.method == "sebra" and ranks.check(data())


def test_samples_never_ranked_come_last() -> None:
    ranking = replace(QUICK, epochs=2).begin(net(), data())
    while not ranking.ended:
        ranking.train_epoch()
    ranks = ranking.ranks()
    assert ranking.ended == "2 epochs are over" and bool(ranking.selected.any())
    assert set(ranks.rank[ranking.selected].tolist()) == {3}
    assert int(ranks.rank[~ranking.selected].max()) <= 2
    assert ranks.facts["never_ranked"] == int(ranking.selected.sum())


def test_only_selected_samples_are_trained_on_and_each_once() -> None:
    ranking = QUICK.begin(net(), data())
    ranking.train_epoch()
    order = ranking.order()
    assert torch.equal(order.sort().values, ranking.selected.nonzero().flatten())
    drawn = replace(QUICK, draws="replacement").begin(net(), data())
    drawn.train_epoch()
    assert len(drawn.order()) == 200 and bool(drawn.selected[drawn.order()].all())


def test_one_class_left_ends_the_ranking() -> None:
    ranking = QUICK.begin(net(), data())
    ranking.selected = data().train.y == 1
    assert ranking.ended == "the 100 samples left are of one class"
    ranking.selected = torch.zeros(200, dtype=torch.bool)
    assert ranking.ended == "all samples are ranked"


def test_ranks_are_judged_in_evaluation_mode_without_augmentation() -> None:
    seen: list[tuple[bool, float]] = []

    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = net()

        def forward(self, x: Tensor) -> Tensor:
            seen.append((self.training, float(x.abs().max())))
            logits: Tensor = self.inner(x)
            return logits

    ranking = QUICK.begin(Watched(), data(), augment=lambda x, _: x + 1000)
    ranking.train_epoch()
    assert {training for training, _ in seen} == {True, False}
    assert all((most > 900) == training for training, most in seen)


def test_a_single_sample_in_a_batch_does_not_reach_batch_norm() -> None:
    ranking = replace(QUICK, batch=2).begin(net(), data(40))
    ranking.selected = torch.arange(40) < 3
    ranking.train_epoch()  # three samples in batches of two: one batch would be of one sample
    assert ranking.epoch == 1


@pytest.mark.parametrize("draws", ["once", "replacement"])
def test_a_resumed_ranking_ends_in_the_same_ranks(draws: str) -> None:
    settings = replace(QUICK, draws=draws, epochs=6)
    whole = settings.begin(net(), data(), seed=3)
    while not whole.ended:
        whole.train_epoch()
    begun = settings.begin(net(), data(), seed=3)
    for _ in range(2):
        begun.train_epoch()
    held = begun.state_dict()
    resumed = settings.begin(net(1), data(), seed=3)
    resumed.load_state_dict(held)
    while not resumed.ended:
        resumed.train_epoch()
    assert torch.equal(whole.ranks().rank, resumed.ranks().rank)
    assert torch.equal(whole.p, resumed.p)


def test_masks_ride_along() -> None:
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    steps = 30 * 7
    sparsity = SparseTraining(model, optimizer, sparsity=0.5, method=SET(every=5), total_steps=steps)
    ranking = QUICK.begin(model, data(), optimizer=optimizer, riders=[sparsity])
    for _ in range(3):
        ranking.train_epoch()
    assert float((model[0].weight == 0).double().mean()) == pytest.approx(0.5, abs=0.02)  # type: ignore[index,union-attr]
    assert ranking.ranks().facts["steps"] == sparsity.step > 0


def test_no_sample_ever_ranked_is_an_error_that_says_what_to_change() -> None:
    with pytest.raises(DataError, match=r"no sample was learnt to p > 0.99 in 1 epochs .* Train longer"):
        Sebra(p_crit=0.99, epochs=1, lr=1e-6).rank(net(), data())


def test_values_that_are_not_finite_are_named() -> None:
    some = data()
    x = some.train.x.clone()
    x[7, 0] = torch.nan
    with pytest.raises(DataError, match="1 of 200 samples hold values that are not finite, the first is sample 7"):
        QUICK.rank(net(), replace(some, train=Split(x, some.train.y)))


def test_training_that_diverges_is_named() -> None:
    with pytest.raises(DataError, match="training has diverged"):
        Sebra(optimizer="sgd", lr=1e30, epochs=3).rank(net(norm=False), data())


def test_one_class_alone_is_refused() -> None:
    some = data()
    with pytest.raises(DataError, match="all samples are of class 'a'"):
        QUICK.rank(net(), replace(some, train=Split(some.train.x, torch.zeros_like(some.train.y))))


@pytest.mark.parametrize("wrong", [{"beta": -1}, {"p_crit": 1.0}, {"epochs": 0}, {"batch": 1}, {"optimizer": "lion"}])
def test_settings_out_of_range(wrong: dict[str, object]) -> None:
    with pytest.raises(RecipeError, match=next(iter(wrong))):
        Sebra(**wrong)  # type: ignore[arg-type]


def test_the_global_generator_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RankWarning)
        replace(QUICK, epochs=2).rank(net(), data())
    assert torch.equal(before, torch.random.get_rng_state())


def test_margins_are_kept_of_the_epoch_in_which_half_are_ranked() -> None:
    ranking = QUICK.begin(net(), data())
    while not ranking.ended:
        ranking.train_epoch()
    assert bool(ranking.margin.isfinite().all())
    assert "margin" in ranking.ranks().values

"""Ranks of difficulty: scores by hand, ranks within a class, mislabelled samples come last, the model stays."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests.train.compare.conftest import made
from torch import nn

from lowdim.core import registry
from lowdim.core.errors import RecipeError
from lowdim.core.recipe import families
from lowdim.data.classification import Dataset
from lowdim.data.errors import DataError
from lowdim.data.raw import Split
from lowdim.runs.tree import pack, unpack
from lowdim.train.selection.base import Ranking
from lowdim.train.selection.confidence import Confidence
from lowdim.train.selection.difficulty import Difficulty
from lowdim.train.selection.el2n import EL2N
from lowdim.train.selection.forgetting import Forgetting

NAMES = ["el2n", "confidence", "forgetting"]


def net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.ReLU(), nn.Linear(16, 4))


def mislabelled(count: int = 12) -> tuple[Dataset, torch.Tensor]:
    """Training data of which the first samples have a wrong class."""
    data = made(400)
    y = data.train.y.clone()
    y[:count] = (y[:count] + 1) % 4
    train = Split(data.train.x, y)
    return Dataset(data.name, data.kind, train, data.validation, data.test, data.classes), torch.arange(len(y)) < count


def chosen(name: str, **settings: int) -> Difficulty:
    found: Difficulty = families.build("selector", {"name": name, "networks": 2, "epochs": 4, "batch": 32, **settings})
    return found


@pytest.mark.parametrize("name", NAMES)
def test_wrong_labels_are_hard(name: str) -> None:
    data, wrong = mislabelled()
    model = net()
    before = copy.deepcopy(model.state_dict())
    ranks = chosen(name).rank(model, data)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    share = torch.tensor([float(ranks.rank[i]) / float(ranks.last()[ranks.label[i]]) for i in range(len(ranks))])
    assert float(share[wrong].mean()) > 0.85
    assert float(share[~wrong].mean()) < 0.6
    assert ranks.method == name
    assert ranks.check(data) is ranks
    scores = ranks.values[name]
    for number in range(4):  # a higher score is a higher rank, and equal scores share one
        mine = ranks.label == number
        order = scores[mine].argsort()
        assert bool((ranks.rank[mine][order].diff() >= 0).all())
        assert int(ranks.rank[mine].min()) == 1
        assert int(ranks.rank[mine].max()) == len(scores[mine].unique())


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_ranks(name: str) -> None:
    data, _ = mislabelled()
    one, two, other = (chosen(name).rank(net(), data, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.rank, two.rank)
    assert not torch.equal(one.rank, other.rank)


def test_epochs_are_told() -> None:
    told: list[int] = []
    chosen("el2n").rank(net(), mislabelled()[0], told=told.append)
    assert told == list(range(1, 9))


def seen(selector: Difficulty, *epochs: torch.Tensor, y: torch.Tensor) -> list[float]:
    memory: dict[str, Any] = {}
    for p in epochs:
        selector.see(memory, p, y)
    return selector.score(memory).tolist()


def test_scores_by_hand() -> None:
    p, y = torch.tensor([[0.6, 0.4], [0.2, 0.8]]), torch.tensor([0, 0])
    # only the last epoch counts
    assert seen(EL2N(), torch.zeros(2, 2), p, y=y) == pytest.approx([(0.16 + 0.16) ** 0.5, (0.64 + 0.64) ** 0.5])
    assert seen(Confidence(), p, 1 - p, y=y) == pytest.approx([0.5, 0.5])
    rights = ([1, 1, 0], [0, 1, 0], [1, 1, 0], [0, 1, 0], [1, 1, 0])
    hits = [torch.stack([torch.tensor(right).float(), 1 - torch.tensor(right).float()], 1) for right in rights]
    assert seen(Forgetting(), *hits, y=torch.zeros(3, dtype=torch.int64)) == [2, 0, 5]


@pytest.mark.parametrize("name", NAMES)
def test_a_ranking_that_is_taken_up_again_ends_with_the_same_ranks(name: str) -> None:
    data, _ = mislabelled()
    whole = chosen(name).rank(net(), data)
    ranking = chosen(name).begin(net(), data)
    while not ranking.ended:
        ranking.train_epoch()
        text, tensors = pack(ranking.state_dict())
        ranking = chosen(name).begin(net(), data)
        ranking.load_state_dict(unpack(text, tensors))
    assert torch.equal(ranking.ranks().rank, whole.rank)
    assert torch.equal(ranking.ranks().values[name], whole.values[name])


@pytest.mark.parametrize("name", [*NAMES, "sebra"])
def test_dropout_draws_the_same_in_a_repeated_and_in_a_resumed_ranking(name: str) -> None:
    data, _ = mislabelled()
    given: dict[str, Any] = {"lr": 0.01, "epochs": 4} if name == "sebra" else {"networks": 2, "epochs": 4, "batch": 32}
    selector = families.build("selector", {"name": name, **given})

    def begun() -> Ranking:
        found: Ranking = selector.begin(nn.Sequential(nn.Dropout(0.5), net()), data)
        torch.rand(1)  # the global generator is elsewhere in every process
        return found

    rankings, before = [begun(), begun(), begun()], torch.random.get_rng_state()
    for number, ranking in enumerate(rankings):
        while not ranking.ended:
            ranking.train_epoch()
            if number == 2:
                text, tensors = pack(ranking.state_dict())
                ranking = begun()
                before = torch.random.get_rng_state()
                ranking.load_state_dict(unpack(text, tensors))
        assert torch.equal(before, torch.random.get_rng_state())
        rankings[number] = ranking
    first, *others = (ranking.ranks() for ranking in rankings)
    for other in others:
        assert torch.equal(first.rank, other.rank)
        assert all(torch.equal(first.values[key], other.values[key]) for key in first.values)


def test_what_cannot_be_ranked_is_refused() -> None:
    data = made()
    data.train.x[3] = torch.nan
    with pytest.raises(DataError, match=r"1 of \d+ samples hold values that are not finite, the first is sample"):
        chosen("el2n").rank(net(), data)
    with pytest.raises(RecipeError, match="epochs must be a whole number of at least 2"):
        Forgetting(epochs=1)
    assert set(NAMES) <= set(registry.names("selector"))

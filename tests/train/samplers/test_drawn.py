"""Weighted, balanced, paired and ranked samples: shares by hand, and what is refused."""

from __future__ import annotations

import pytest
import torch
from tests.train.objectives.crowds import crowd, grouped, ranks_of

from lowdim.core.errors import RecipeError
from lowdim.core.random import generator
from lowdim.train.objectives.base import Samples
from lowdim.train.objectives.erm import ERM
from lowdim.train.samplers.aim import Aim
from lowdim.train.samplers.group_balanced import GroupBalanced
from lowdim.train.samplers.pairs import Pairs, _others
from lowdim.train.samplers.ranked import RankedShare
from lowdim.train.samplers.weighted import WeightedSampler, weighted_rows


def test_rows_come_as_often_as_they_weigh() -> None:
    rows = weighted_rows(torch.tensor([1.0, 0.0, 3.0]), 40_000, generator(0, "draw"))
    counts = torch.bincount(rows, minlength=3) / 40_000
    assert counts.tolist() == pytest.approx([0.25, 0.0, 0.75], abs=0.01)


@pytest.mark.parametrize(("power", "share"), [(1.0, 0.5), (0.0, 0.1), (0.5, 0.25)])
def test_groups_are_drawn_by_their_inverse_frequency(power: float, share: float) -> None:
    samples = grouped([0] * 900 + [1] * 100, ("large", "small"))
    chosen = WeightedSampler(power=power)
    rows = torch.cat([chosen.order(samples, {}, e, 50, generator(0, e)) for e in range(50)])
    assert float((rows >= 900).double().mean()) == pytest.approx(share, abs=0.01)


def test_groups_take_turns_and_the_small_one_repeats() -> None:
    samples = grouped([0] * 7 + [1] * 2 + [3], ("a", "b", "none", "c"))
    rows = GroupBalanced().order(samples, {}, 0, 1, generator(0, "turns"))
    kinds = samples.index[rows]
    assert len(rows) == 10
    assert kinds.tolist() == [0, 1, 3] * 3 + [0]
    assert len(rows[kinds == 0].unique()) == 4  # none of the large group twice
    assert sorted(rows[kinds == 1].tolist()[:2]) == [7, 8]


def test_partners_by_hand() -> None:
    y = torch.tensor([0, 0, 0, 0, 1, 1])
    samples = Samples(torch.zeros(6, 1), y, 2, ranks=ranks_of([1, 1, 2, 5, 1, 3], y))
    seen: dict[int, tuple[set[int], set[int]]] = {}
    for epoch in range(40):
        for anchor, positive, negative in Pairs(gap=2).order(samples, {}, epoch, 40, generator(0, epoch)).tolist():
            up, same = seen.setdefault(anchor, (set(), set()))
            up.add(positive)
            same.add(negative)
    # rank 1 wants 3: the next there is 5, of row 3; rank 2 wants 4, the last rank is 5; rank 5 stays; class 1 likewise
    assert seen == {
        0: ({3}, {1}),
        1: ({3}, {0}),
        2: ({3}, {2}),
        3: ({3}, {3}),
        4: ({5}, {4}),
        5: ({5}, {5}),
    }


def test_every_partner_is_another_sample_of_its_rank() -> None:
    y = torch.tensor([0] * 6 + [1] * 5)
    rank = torch.tensor([1, 2, 3, 1, 2, 3, 1, 4, 1, 4, 1])
    samples = Samples(torch.zeros(11, 1), y, 2, ranks=ranks_of(rank.tolist(), y))
    rows = torch.cat([Pairs(gap=1).order(samples, {}, e, 60, generator(0, e)) for e in range(60)])
    for anchor in range(11):
        mine = rows[rows[:, 0] == anchor]
        last = int(rank[y == y[anchor]].max())
        above = last if y[anchor] else min(int(rank[anchor]) + 1, last)
        for column, wanted in ((1, above), (2, int(rank[anchor]))):
            others = set(((y == y[anchor]) & (rank == wanted)).nonzero().flatten().tolist()) - {anchor}
            assert set(mine[:, column].tolist()) == others


@pytest.mark.parametrize(("anchor", "drawn"), [(2, [5, 5, 7, 7]), (5, [2, 2, 7, 7]), (7, [2, 2, 5, 5])])
def test_a_chance_chooses_evenly_among_the_others(anchor: int, drawn: list[int]) -> None:
    chances = torch.tensor([0.0, 0.49, 0.5, 0.99])
    assert _others(torch.tensor([2, 5, 7]), torch.full((4,), anchor), chances).tolist() == drawn
    assert _others(torch.tensor([anchor]), torch.full((4,), anchor), chances).tolist() == [anchor] * 4


def test_ranks_that_contrast_nothing_are_refused() -> None:
    y = torch.tensor([0, 0, 1])
    flat = Samples(torch.zeros(3, 1), y, 2, ranks=ranks_of([1, 1, 2], y))
    with pytest.raises(RecipeError, match="every class has one rank alone"):
        Pairs().begin(flat)


def test_pairs_and_what_makes_nothing_of_them() -> None:
    with pytest.raises(RecipeError, match="the objective makes nothing of"):
        Aim(ERM(), Pairs(), crowd())


def test_a_share_by_rank_is_exact_and_of_each_class() -> None:
    y = torch.tensor([0] * 6 + [1] * 3)
    samples = Samples(torch.zeros(9, 1), y, 2, ranks=ranks_of([1, 2, 3, 4, 5, 6, 3, 1, 2], y))
    hardest, easiest = (
        RankedShare(share=1 / 3, part=part).begin(samples)["rows"].tolist()
        for part in ("hardest", "easiest")  # type: ignore[arg-type]
    )
    assert hardest == [4, 5, 6]
    assert easiest == [0, 1, 7]
    assert len(RankedShare(share=0.5, part="random").begin(samples)["rows"]) == 4
    assert RankedShare(part="random").requires == frozenset()


def test_equal_ranks_are_drawn_among() -> None:
    y = torch.zeros(20, dtype=torch.int64)
    found = [
        tuple(
            RankedShare(share=0.5)
            .begin(Samples(torch.zeros(20, 1), y, 1, seed, ranks=ranks_of(torch.ones(20).long(), y, 1)))["rows"]
            .tolist()
        )
        for seed in (0, 0, 1)
    ]
    assert found[0] == found[1] != found[2]

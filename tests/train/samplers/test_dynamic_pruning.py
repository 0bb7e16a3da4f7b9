"""Dynamic data pruning: exact shares, what is hard, R_s, chunks of texts, and what can never prune."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.train.objectives.crowds import crowd

from lowdim.core.errors import RecipeError
from lowdim.core.random import generator
from lowdim.train.objectives.base import Samples
from lowdim.train.samplers.dynamic_pruning import DynamicPruning


def run(chosen: DynamicPruning, samples: Samples, epochs: int, score: torch.Tensor) -> tuple[list[torch.Tensor], Any]:
    memory, found = chosen.begin(samples), []
    for epoch in range(epochs):
        chosen.prepare(samples, memory, epoch, epochs, lambda x, y: (x == 9).any(1).float())
        rows = chosen.order(samples, memory, epoch, epochs, generator(0, epoch))
        chosen.told(rows, score[rows], memory)
        found.append(rows)
    return found, memory


@pytest.mark.parametrize(
    ("choose", "score"), [("hardest", "loss"), ("easiest", "loss"), ("drawn", "loss"), ("hardest", "random")]
)
@pytest.mark.parametrize("warm", [0, 1, 2])
def test_the_kept_share_is_exact_in_every_cycle(choose: Any, score: Any, warm: int) -> None:
    chosen = DynamicPruning(keep=0.37, warm=warm, choose=choose, by=score, every=2)
    rows, _ = run(chosen, crowd(), 6, torch.arange(40.0))
    for epoch, part in enumerate(rows):
        assert len(part) == (40 if epoch < warm else 15)  # round(0.37 * 40)
        assert len(part.unique()) == len(part)
    first = [set(part.tolist()) for part in rows[warm : warm + 2]]
    assert first[0] == first[1]  # a cycle of two epochs


def test_the_hardest_are_kept_after_the_warm_epoch() -> None:
    rows, memory = run(DynamicPruning(keep=0.25), crowd(), 3, torch.arange(40.0))
    assert rows[1].sort().values.tolist() == list(range(30, 40))
    assert rows[2].sort().values.tolist() == list(range(30, 40))
    easy, _ = run(DynamicPruning(keep=0.25, choose="easiest"), crowd(), 2, torch.arange(40.0))
    assert easy[1].sort().values.tolist() == list(range(10))
    assert memory["scores"].tolist() == list(range(40))


def test_losses_that_fall_make_room_for_others() -> None:
    samples, chosen = crowd(), DynamicPruning(keep=0.5)
    memory = chosen.begin(samples)
    chosen.order(samples, memory, 0, 3, generator(0, 0))
    chosen.told(torch.arange(40), torch.arange(1.0, 41.0), memory)
    second = chosen.order(samples, memory, 1, 3, generator(0, 1))
    chosen.told(second, torch.zeros(20), memory)
    third = chosen.order(samples, memory, 2, 3, generator(0, 2))
    assert set(third.tolist()) == set(range(20))


def test_chances_follow_losses() -> None:
    samples, chosen = crowd(), DynamicPruning(keep=0.25, choose="drawn", warm=0)
    hits = torch.zeros(40)
    for seed in range(300):
        memory = chosen.begin(samples)
        memory["scores"] = torch.where(torch.arange(40) < 20, 1.0, 4.0)
        hits[chosen.order(samples, memory, 0, 1, generator(seed, "chance"))] += 1
    assert float(hits.sum()) == 3000
    assert 2.5 < float(hits[20:].sum() / hits[:20].sum()) < 4.0  # 4 for the first of ten drawn without replacement


def test_what_was_ever_kept_is_counted() -> None:
    chosen = DynamicPruning(keep=0.25, warm=0, by="random")
    samples, seen = crowd(), set()
    memory = chosen.begin(samples)
    for epoch in range(4):
        seen |= set(chosen.order(samples, memory, epoch, 4, generator(0, epoch)).tolist())
        report = chosen.report(memory)
        assert report["samples_kept"] == 0.25
        assert report["samples_explored"] == len(seen) / 40
    assert len(seen) > 20


def test_a_linear_schedule_ends_at_keep() -> None:
    chosen = DynamicPruning(keep=0.2, warm=1, schedule="linear", every=2)
    assert [round(chosen.share(epoch, 9), 3) for epoch in range(9)] == [1, 0.8, 0.8, 0.6, 0.6, 0.4, 0.4, 0.2, 0.2]


# ---------------------------------------------------------------- chunks


def texts() -> Samples:
    """Three texts of six words; the second has four, the third two."""
    x = torch.tensor([[2, 3, 4, 5, 6, 7], [2, 9, 4, 5, 0, 0], [8, 8, 0, 0, 0, 0]])
    return Samples(x, torch.tensor([0, 1, 0]), 2)


def test_chunks_that_are_kept_move_together() -> None:
    chosen = DynamicPruning(keep=0.7, warm=0, chunk=2)
    samples = texts()
    memory = chosen.begin(samples)
    assert memory["units"] == 6
    memory["kept"] = torch.tensor([[True, False, True], [False, True, False], [True, False, False]])
    assert chosen.shown(samples.x, torch.arange(3), memory).tolist() == [[2, 3, 6, 7], [4, 5, 0, 0], [8, 8, 0, 0]]


def test_the_share_of_chunks_is_exact_and_every_text_keeps_its_best() -> None:
    chosen = DynamicPruning(keep=0.67, warm=1, chunk=2)
    samples = texts()
    rows, memory = run(chosen, samples, 2, torch.zeros(3))
    assert [len(part) for part in rows] == [3, 3]
    # four of six chunks: the best of each text, and the chunk with a 9 is the best of the second
    assert int(memory["kept"].sum()) == 4
    assert bool(memory["kept"].any(1).all())
    assert bool(memory["kept"][1, 0])
    assert memory["kept"][2].tolist() == [True, False, False]
    assert chosen.report(memory) == {"samples_kept": 4 / 6, "samples_explored": 1.0}
    assert chosen.scans(2) == 1


def test_what_can_never_prune_is_refused() -> None:
    with pytest.raises(RecipeError, match="prunes nothing in 2 epochs"):
        DynamicPruning(warm=2).check_length(2)
    with pytest.raises(RecipeError, match=r"sampler.chunk cuts texts"):
        DynamicPruning(chunk=4).check_kind("image")
    with pytest.raises(RecipeError, match="leaves 2 chunks for 3 texts"):
        DynamicPruning(keep=0.34, chunk=2).begin(texts())
    with pytest.raises(RecipeError, match="keep must be above 0"):
        DynamicPruning(keep=0.0)

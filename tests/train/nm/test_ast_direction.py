"""AST on a language model that has learnt something: a few hundred steps undo most of what one-shot 2:4 breaks."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from tests.evaluate.trained import alphabet, encoded, table, trained
from torch import Tensor

from lowdim.core.pattern import NM
from lowdim.nn.slorb import add_slorb
from lowdim.train.loop import Loop
from lowdim.train.nm.adaptive import AdaptiveMasks
from lowdim.train.nm.ast import AST

STEPS = 60

pytestmark = pytest.mark.slow


class Seen(NamedTuple):
    """Losses before and after training, and the mean share of weights that changed sides at a choice of masks."""

    before: float
    after: float
    flipped: float


@cache
def facts() -> tuple[Tensor, Tensor]:
    return encoded(alphabet()), encoded(table())


def loss(model: Any, _: Any = None) -> Tensor:
    total = torch.zeros(())
    for ids in facts():
        logits = model(input_ids=ids[:, :-1]).logits[:, -1]
        total = total + torch.nn.functional.cross_entropy(logits, ids[:, -1])
    return total


@torch.no_grad()
def measured(model: Any) -> float:
    return float(loss(model))


def recovered(settings: AST) -> Seen:
    model = trained().train()
    some = {name: p for name, p in model.named_parameters() if p.dim() == 2 and ".layers." in name}
    masks = {name: NM(2, 4).mask(p.detach().abs(), p.numel() // 2) for name, p in some.items()}
    if settings.slorb:
        add_slorb(model, masks, settings.slorb, init=settings.slorb_init, trains_p=settings.slorb_trains_p)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.0)
    moving = AdaptiveMasks(some, masks, "2:4", settings, optimizer, STEPS)
    loop = Loop(
        model,
        optimizer,
        loss=loss,
        schedule=lambda step: 1 - step / STEPS,
        projected=moving.projections(),
        riders=[moving],
    )
    before = measured(model)
    loop.run([torch.zeros(1)] * STEPS)
    assert all(bool((p.reshape(-1, 4) != 0).sum(1).eq(2).all()) for p in some.values())
    return Seen(before, measured(model), sum(update["flipped"] for update in moving.history) / len(moving.history))


@pytest.fixture(scope="module")
def runs() -> dict[float, Seen]:
    return {decay: recovered(AST(decay=decay)) for decay in (0.0, 0.1, 1.0)}


def test_it_beats_one_shot_pruning_by_a_wide_margin(runs: dict[float, Seen]) -> None:
    dense = measured(trained())
    assert dense < 0.1
    for seen in runs.values():
        assert seen.before > 3.0
        assert seen.after < 0.1


def test_more_decay_moves_fewer_weights(runs: dict[float, Seen]) -> None:
    rates = [runs[decay].flipped for decay in (0.0, 0.1, 1.0)]
    assert rates[0] > 1.5 * rates[1] > 2.25 * rates[2] > 0


def test_slorb_begins_better(runs: dict[float, Seen]) -> None:
    seen = recovered(AST(decay=0.1, slorb=8))
    assert seen.before < runs[0.1].before - 0.3
    assert seen.after < 0.1

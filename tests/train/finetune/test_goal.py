"""Losses without the logits of a whole batch are those with them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tests.models.zoo import VOCAB, ZOO

from lowdim.data.corpus.cache import Part
from lowdim.train.finetune.goal import Answers, Preferred
from lowdim.train.finetune.pairs import Encoded, Pairs
from lowdim.train.preference.dpo import DPO
from lowdim.train.preference.todo import TODO
from lowdim.train.pretrain.goal import NextToken
from lowdim.train.pretrain.sequences import Sequences

CPU = torch.device("cpu")


def given(kind: str) -> tuple[Any, torch.Generator]:
    torch.manual_seed(0)
    return ZOO[kind](), torch.Generator().manual_seed(0)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3"])
def test_answers_cost_what_next_tokens_do(kind: str) -> None:
    model, draw = given(kind)
    ids = torch.randint(VOCAB, (60,), generator=draw).numpy().astype(np.uint16)
    counted = np.tile(np.array([False] * 12 + [True] * 8), 3)
    part = Part(ids, np.array([0, 20, 40, 60]), counted, np.array([12, 12, 12]))
    micro = Sequences(part, 16, packed=False).micro([0, 1, 2])
    found = {}
    for goal in (Answers(model), NextToken()):
        loss = goal.loss(model, micro, CPU)
        gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        with torch.no_grad():
            sums = goal.sums(model, micro, CPU)
        found[type(goal)] = loss, gradients, sums
    one, other = found[Answers], found[NextToken]
    assert torch.allclose(one[0], other[0], atol=1e-5) and torch.allclose(one[2], other[2], rtol=1e-5)
    for mine, theirs in zip(one[1], other[1], strict=True):
        assert (mine is None) == (theirs is None)
        assert mine is None or torch.allclose(mine, theirs, atol=1e-5)


@pytest.mark.parametrize("rule", [DPO(beta=0.5), TODO(beta=0.5)], ids=str)
def test_preferences_by_hand(rule: Any) -> None:
    model, draw = given("llama")
    rows = [torch.randint(VOCAB, (9,), generator=draw).tolist() for _ in range(4)]
    pairs = Pairs([Encoded(((rows[0], 4), (rows[1][:7], 5)), False), Encoded(((rows[2], 3), (rows[3], 4)), True)], 20)
    pairs.reference = torch.tensor([[-30.0, -20.0], [-25.0, -26.0]])
    micro = pairs.micro([0, 1])

    def said(ids: list[int], first: int) -> torch.Tensor:
        logits = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        return torch.stack([logits[at - 1, ids[at]] for at in range(first, len(ids))]).sum()

    wanted = torch.stack(
        [
            said(rows[0], 4) + 30 - said(rows[1][:7], 5) - 20,
            said(rows[2], 3) + 25 - said(rows[3], 4) - 26,
        ]
    )
    goal = Preferred(rule, model)
    loss, plain = goal.loss(model, micro, CPU), rule.losses(wanted, torch.tensor([False, True])).mean()
    assert torch.allclose(loss, plain, atol=1e-4)
    parameters = [p for p in model.parameters() if p.dim() == 2]
    for mine, theirs in zip(torch.autograd.grad(loss, parameters), torch.autograd.grad(plain, parameters), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-4)
    with torch.no_grad():
        verdict = goal.verdict(goal.sums(model, micro, CPU).tolist())
    assert verdict["accuracy"] == float(wanted[0] > 0)
    decided = rule.decided(wanted.detach())
    assert verdict["accuracy_with_ties"] == (float(decided[0] == 1) + float(decided[1] == 0)) / 2


def test_prompts_are_cut_alike_and_long_answers_passed_over() -> None:
    long = Encoded((([0] * 30 + [1, 2], 30), ([0] * 30 + [3], 30)), False)
    pairs = Pairs([long, Encoded((([0, *[1] * 12], 1), ([0, 2], 1)), False)], 10)
    assert len(pairs) == 1 and pairs.passed_over == 1
    micro = pairs.micro([0])
    assert micro.ids.shape == (2, 10) and pairs.tokens(0) == 11
    assert (micro.targets != -100).sum(1).tolist() == [2, 1]
    assert micro.targets[0, 8:].tolist() == [1, 2] and micro.targets[1, 8].item() == 3

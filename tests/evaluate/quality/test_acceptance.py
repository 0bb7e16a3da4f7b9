"""Acceptance of drafts: sums by hand, and verification that leaves the target's distribution as it is."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from tests.models.zoo import ZOO
from torch import Tensor

from lowdim.evaluate.errors import EvaluationError
from lowdim.evaluate.quality.acceptance import (
    Probabilities,
    Reader,
    block_efficiency,
    expected,
    overlap,
    speculate,
)

P, Q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.2, 0.6])


def constant(row: Tensor) -> Probabilities:
    def said(rows: Sequence[Sequence[int]], last: int) -> Tensor:
        return row.expand(len(rows), last, len(row))

    return said


def chain(seed: int, words: int) -> Probabilities:
    """A distribution for every last token."""
    table = torch.randn(words, words, generator=torch.Generator().manual_seed(seed)).softmax(-1)

    def said(rows: Sequence[Sequence[int]], last: int) -> Tensor:
        return torch.stack([table[torch.tensor(row[len(row) - last :])] for row in rows])

    return said


def test_overlap_by_hand() -> None:
    assert overlap(P, Q).item() == pytest.approx(0.2 + 0.2 + 0.2)
    assert overlap(P, P).item() == pytest.approx(1.0)
    assert overlap(P, torch.tensor([0.0, 1.0])).item() == pytest.approx(0.3)  # the third word is 0 to the draft


@pytest.mark.parametrize("drafted", [1, 3, 5])
def test_block_efficiency_is_that_of_the_closed_form(drafted: int) -> None:
    assert block_efficiency(0.8, drafted) == pytest.approx((1 - 0.8 ** (drafted + 1)) / (1 - 0.8))


def test_a_draft_that_is_the_target_is_always_accepted() -> None:
    done = speculate(chain(0, 6), chain(0, 6), [[0], [1]], tokens=12, drafted=3, seed=0)
    assert (done.acceptance, done.efficiency, done.tokens) == (1.0, 4.0, 24)


def test_acceptance_is_the_overlap_and_efficiency_the_closed_form() -> None:
    done = speculate(constant(P), constant(Q), [[0]] * 40, tokens=200, drafted=4, seed=1)
    assert done.acceptance == pytest.approx(0.6, abs=0.02)
    assert done.efficiency == pytest.approx(block_efficiency(0.6, 4), abs=0.06)


@pytest.mark.parametrize("words", [4, 5], ids=["fewer", "equal"])
def test_what_is_written_is_distributed_as_the_target_says(words: int) -> None:
    """Also where the draft knows fewer words than the target."""
    target = chain(2, 5)
    done = speculate(target, _folded(3, words), [[0]] * 300, tokens=30, drafted=3, seed=2)
    pairs = torch.zeros(5, 5)
    for row in done.rows:
        for before, after in zip((0, *row), row, strict=False):
            pairs[before, after] += 1
    table = target([[token] for token in range(5)], 1)[:, 0]
    wanted = table * pairs.sum(1, keepdim=True)
    statistic = float(((pairs - wanted).square() / wanted).sum())
    assert statistic < 45.3  # of 20 degrees of freedom, one time in a thousand


def _folded(seed: int, words: int) -> Probabilities:
    """A draft of fewer words, which reads those that it does not know as its last."""
    inner = chain(seed, words)

    def said(rows: Sequence[Sequence[int]], last: int) -> Tensor:
        return inner([[min(token, words - 1) for token in row] for row in rows], last)

    return said


def test_expected_acceptance_of_models_counts_what_is_marked() -> None:
    target, draft = Reader(ZOO["llama"]()), Reader(ZOO["qwen3"]())
    ids = torch.arange(12).view(2, 6)
    counted = torch.tensor([[True] * 6, [False, True, False, True, True, False]])
    found = expected(target, draft, [(ids, counted)])
    whole = [each.model(input_ids=ids).logits.softmax(-1)[counted] for each in (target, draft)]
    assert found.acceptance == pytest.approx(overlap(*whole).mean().item(), abs=1e-6)
    assert found.agreement == pytest.approx((whole[0].argmax(-1) == whole[1].argmax(-1)).double().mean().item())
    assert found.tokens == 9
    assert expected(target, target, [(ids, counted)]).acceptance == pytest.approx(1.0)


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_a_reader_says_the_same_of_rows_of_any_length(kind: str) -> None:
    reader = Reader(ZOO[kind]())
    rows = [[3, 4, 5, 6, 7], [8, 9]]
    both = reader(rows, 2)
    for row, found in zip(rows, both, strict=True):
        assert torch.allclose(found, reader.model(input_ids=torch.tensor([row])).logits[0, -2:].softmax(-1), atol=1e-6)


def test_a_draft_of_other_words_speaks_of_those_of_the_target_alone() -> None:
    model = ZOO["llama"]()
    few = Reader(model, words=10)
    logits = model(input_ids=torch.tensor([[3, 4, 95]])).logits[0, -1]
    assert torch.allclose(few([[3, 4, 95]], 1)[0, 0], logits[:10].softmax(-1), atol=1e-6)
    assert torch.equal(few([[3, 4, 1000]], 1), few([[3, 4, 95]], 1))


def test_nothing_to_measure_is_refused() -> None:
    reader = Reader(ZOO["llama"]())
    with pytest.raises(EvaluationError, match="no token that counts"):
        expected(reader, reader, [])
    with pytest.raises(EvaluationError, match="at least one token each"):
        speculate(constant(P), constant(Q), [[]], tokens=1, drafted=1, seed=0)

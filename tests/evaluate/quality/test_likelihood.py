"""Log-likelihood of continuations: hand-made numbers, batching, tokenisation."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from lowdim.data.batch import Batch
from lowdim.data.errors import DataError
from lowdim.evaluate.quality import likelihood
from lowdim.evaluate.quality.likelihood import encode_pair, loglikelihood, token_nll

PAIRS = [
    ("the cat", " sat on the mat."),
    ("the cat", " ran"),
    ("a", "b"),
    ("a", "c"),
    ("", "hello"),
    ("question: is it so?", " yes"),
    ("question: is it so?", " no"),
    ("a dog and a cat and a cow", " met."),
]


def test_token_nll_is_the_log_of_the_softmax() -> None:
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([0, 6, 3, 3, 1])
    expected = -logits.double().log_softmax(-1)[range(5), targets]
    torch.testing.assert_close(token_nll(logits, targets), expected.float())


def test_slices_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, targets = torch.randn(9, 7), torch.randint(7, (9,))
    whole = token_nll(logits, targets)
    monkeypatch.setattr(likelihood, "_SLICE", 20)
    assert torch.equal(token_nll(logits, targets), whole)


def test_half_precision_logits_are_summed_in_single() -> None:
    logits = torch.zeros(1, 4096, dtype=torch.bfloat16)
    assert token_nll(logits, torch.tensor([0])).item() == pytest.approx(math.log(4096), rel=1e-6)


def test_by_hand(tokenizer: Any, bigram: Any) -> None:
    table = torch.full((38, 38), -math.inf)
    a, b, c = (tokenizer.convert_tokens_to_ids(x) for x in "abc")
    table[a, b], table[a, c] = math.log(0.75), math.log(0.25)
    table[b, c] = table[c, b] = 0.0
    found = loglikelihood(bigram(table), tokenizer, [("a", "b"), ("a", "c"), ("a", "bc"), ("ba", "cb")])
    assert [x.value for x in found] == pytest.approx([math.log(p) for p in (0.75, 0.25, 0.75, 0.25)])
    assert [x.greedy for x in found] == [True, False, True, False]


@pytest.mark.parametrize("size", [1, 40, 10_000])
def test_batching_does_not_matter(model: Any, tokenizer: Any, size: int) -> None:
    found = loglikelihood(model, tokenizer, PAIRS, tokens_per_batch=size)
    model.eval()
    for (context, continuation), score in zip(PAIRS, found, strict=True):
        before, after = encode_pair(tokenizer, context, continuation)
        with torch.no_grad():
            logits = model(torch.tensor([before + after])).logits[0].double().log_softmax(-1)
        expected = sum(float(logits[len(before) + i - 1, token]) for i, token in enumerate(after))
        assert score.value == pytest.approx(expected, rel=1e-4)


def test_single_tokens_after_one_context_share_a_pass(tokenizer: Any, bigram: Any) -> None:
    model = bigram(torch.zeros(38, 38))
    seen: list[Batch] = []

    def forward(batches: Any) -> Any:
        for batch in batches:
            seen.append(batch)
            yield model(batch.input_ids)

    loglikelihood(forward, tokenizer, [("abcd", "e"), ("abcd", "f"), ("ab", "cd"), ("abc", "d")])
    rows = [tokenizer.decode(row) for batch in seen for row in batch.input_ids]
    assert rows == ["abcd", "abc</s>"]


def test_batches_hold_no_more_than_asked_for(tokenizer: Any, bigram: Any) -> None:
    model = bigram(torch.zeros(38, 38))
    shapes: list[tuple[int, ...]] = []

    def forward(batches: Any) -> Any:
        for batch in batches:
            shapes.append(tuple(batch.input_ids.shape))
            yield model(batch.input_ids)

    loglikelihood(forward, tokenizer, [("a" * n, "b") for n in range(1, 12)], tokens_per_batch=20)
    assert sum(rows for rows, _ in shapes) == 11
    assert all(rows * length <= 20 for rows, length in shapes)
    assert [length for _, length in shapes] == sorted((length for _, length in shapes), reverse=True)


def test_blanks_move_from_the_context_to_the_continuation(tokenizer: Any) -> None:
    before, after = encode_pair(tokenizer, "the cat \n", "sat")
    assert (tokenizer.decode(before), tokenizer.decode(after)) == ("the cat", " \nsat")


def test_an_empty_context_is_the_start_token(tokenizer: Any, bos_tokenizer: Any) -> None:
    for one in (tokenizer, bos_tokenizer):
        before, after = encode_pair(one, "", "ab")
        assert (before, one.decode(after)) == ([0], "ab")


def test_the_tokenizers_own_start_token_is_kept(bos_tokenizer: Any) -> None:
    before, after = encode_pair(bos_tokenizer, "ab", " c")
    assert bos_tokenizer.decode(before) == "<s>ab"
    assert bos_tokenizer.decode(after) == " c"


def test_long_contexts_lose_their_beginning(llama: Any, tokenizer: Any) -> None:
    (cut,) = loglikelihood(llama, tokenizer, [("x" * 90 + "abc", "de")], max_length=4)
    (short,) = loglikelihood(llama, tokenizer, [("abc", "de")])
    assert cut.value == pytest.approx(short.value, rel=1e-5)
    with pytest.raises(DataError, match="a continuation has 5 tokens, more than max_length=4"):
        loglikelihood(llama, tokenizer, [("a", "bcdef")], max_length=4)


def test_an_empty_continuation_is_refused(llama: Any, tokenizer: Any) -> None:
    with pytest.raises(DataError, match="no token of its own"):
        loglikelihood(llama, tokenizer, [("a", "")])


def test_nothing_asked_nothing_answered(llama: Any, tokenizer: Any) -> None:
    assert loglikelihood(llama, tokenizer, []) == []

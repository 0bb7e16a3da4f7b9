"""Log-likelihood of continuations: hand-made numbers, batching, tokenisation."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tests.evaluate.conftest import build_tokenizer

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


TEMPLATES = {
    "$A": [],
    "<s> $A": [0],
    "$A </s>": [],
    "<s> $A </s>": [0],
    "</s> <s> $A </s> <unk>": [1, 0],
    "<s> <s> $A": [0, 0],
    "<unk> $A <s>": [2],
}


@pytest.mark.parametrize("template", TEMPLATES)
def test_an_answer_is_its_own_tokens_under_every_template(template: str, bigram: Any) -> None:
    tokenizer = build_tokenizer(template)
    for context, answer in [*PAIRS[:4], *PAIRS[5:], ("a. </s>", " b"), ("ab", "</s>")]:
        before, after = encode_pair(tokenizer, context, answer)
        own = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (context, answer)]
        assert (before, after) == (TEMPLATES[template] + own[0], own[1])
    table = torch.randn(38, 38, generator=torch.Generator().manual_seed(0))
    plain = loglikelihood(bigram(table), build_tokenizer(), PAIRS)
    found = loglikelihood(bigram(table), tokenizer, PAIRS)
    assert [score.value for score in found] == pytest.approx([score.value for score in plain])


@pytest.mark.parametrize("bos", ["tokenizer", "none", "window"])
@pytest.mark.parametrize("template", TEMPLATES)
def test_the_start_of_text_goes_where_it_is_asked_for(template: str, bos: Any, llama: Any) -> None:
    tokenizer = build_tokenizer(template)
    before, after = encode_pair(tokenizer, "ab", " c", bos)
    assert tokenizer.decode(after) == " c"
    assert before[:-2] == {"tokenizer": TEMPLATES[template], "none": [], "window": [0]}[bos]
    plain = build_tokenizer()
    (cut,) = loglikelihood(llama, tokenizer, [("x" * 90 + "abc", "de")], max_length=5, bos=bos)
    (short,) = loglikelihood(llama, plain, [("<s>abc" if bos == "window" else "xabc", "de")])
    assert cut.value == pytest.approx(short.value, rel=1e-5)


def merging(*merges: str) -> Any:
    """Return a tokenizer of characters of which some pairs merge, whatever blank stands between them."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    characters = sorted({c for merge in merges for c in merge} | set("Answer: BCD"))
    pairs = [(merge[:-1], merge[-1]) for merge in merges]
    vocabulary = {token: i for i, token in enumerate(["<s>", *characters, *merges])}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocabulary, pairs)), bos_token="<s>")


@pytest.mark.parametrize(
    ("merges", "context", "answer", "expected"),
    [
        ([": ", ": C"], "Answer:", " C", [" ", "C"]),  # question and answer end in one token
        ([": "], "Answer:", " C", [" ", "C"]),  # only the blank merges: the answer would lose it
        ([": ", ": C"], "Answer:", " CD", [" ", "C", "D"]),  # a part of the answer goes with the question
        ([": ", ": C"], "Answer:", " B", [" ", "B"]),
        (["r:"], "Answer", ":B", [":", "B"]),
        ([" C"], "Answer:", " C", [" C"]),  # merges of the answer alone stay
        (["er"], "Answer:", " C", [" ", "C"]),
    ],
)
def test_an_answer_that_merges_with_its_question_is_encoded_apart(
    merges: list[str], context: str, answer: str, expected: list[str], bigram: Any
) -> None:
    tokenizer = merging(*merges)
    before, after = encode_pair(tokenizer, context, answer)
    assert tokenizer.convert_ids_to_tokens(after) == expected
    assert before == tokenizer(context)["input_ids"]
    pairs = [(context, answer), ("Answer:", " B")]
    found = loglikelihood(bigram(torch.zeros(40, 40)), tokenizer, pairs)
    assert found[0].value == pytest.approx(-len(expected) * math.log(40))


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

"""The arrangements of calibration samples, with one token a character."""

from __future__ import annotations

import string
from typing import Any

import pytest

from lowdim.core.random import generator
from lowdim.data.errors import DataError
from lowdim.data.formats import Layout, arrange
from lowdim.data.text import Document


def texts(tokenizer: Any, documents: list[Document], seed: int = 0, **layout: Any) -> list[str]:
    rows = arrange(documents, tokenizer, Layout(**layout), generator(seed, "calibration"))
    return [tokenizer.decode(row) for row in rows]


PROSE = [Document(text=string.ascii_lowercase), Document(text=string.ascii_uppercase)]
QUESTIONS = [Document(question=f"{i} + 1?", answer=f"{i + 1}", rationale="Count on.") for i in range(8)]


def test_windows_are_stretches_of_one_document_each(tokenizer: Any) -> None:
    found = texts(tokenizer, PROSE, samples=2, context=7)
    assert all(len(window) == 7 for window in found)
    assert {window in string.ascii_lowercase for window in found} == {True, False}
    assert all(window in string.ascii_lowercase or window in string.ascii_uppercase for window in found)


def test_no_token_is_used_twice(tokenizer: Any) -> None:
    found = "".join(texts(tokenizer, PROSE, samples=10, context=5)).replace("\n", "")
    assert len(found) == len(set(found))


@pytest.mark.parametrize("seed", range(5))
def test_samples_times_context_tokens_are_enough(tokenizer: Any, seed: int) -> None:
    assert len(texts(tokenizer, PROSE, seed=seed, samples=13, context=4)) == 13  # 52 letters


def test_short_documents_are_joined(tokenizer: Any) -> None:
    (window,) = texts(tokenizer, [Document(text="ab"), Document(text="cd")], samples=1, context=5)
    assert window in ("ab\n\nc", "cd\n\na")


def test_too_little_text_names_both_numbers(tokenizer: Any) -> None:
    with pytest.raises(DataError, match=r"have 52 tokens of text, need 60 for 3 samples of 20 .*samples=2,"):
        texts(tokenizer, PROSE, samples=3, context=20)
    with pytest.raises(DataError, match="have 52 tokens of text, fewer than one sample of 99"):
        texts(tokenizer, PROSE, samples=1, context=99)


def test_the_seed_decides(tokenizer: Any) -> None:
    first, again, other = (texts(tokenizer, PROSE, seed=s, samples=2, context=7) for s in (0, 0, 1))
    assert first == again != other


def test_zero_and_single(tokenizer: Any) -> None:
    zero = texts(tokenizer, QUESTIONS, format="zero", samples=8, context=40)
    assert sorted(zero) == [f"Question: {i} + 1?\nAnswer:" for i in range(8)]
    single = texts(tokenizer, QUESTIONS, format="single", samples=8, context=40)
    assert sorted(single) == [f"Question: {i} + 1?\nAnswer: {i + 1}" for i in range(8)]


def test_a_rationale_precedes_the_answer(tokenizer: Any) -> None:
    (row,) = texts(tokenizer, QUESTIONS[:1], format="single", samples=1, context=99, rationale=True)
    assert row == "Question: 0 + 1?\nAnswer: Count on. So the answer is 1."


def test_concat_of_one_equals_single(tokenizer: Any) -> None:
    single = texts(tokenizer, QUESTIONS, format="single", samples=8, context=60)
    assert texts(tokenizer, QUESTIONS, format="concat", in_context=1, samples=8, context=60) == single


def test_concat_fills_the_window(tokenizer: Any) -> None:
    rows = texts(tokenizer, QUESTIONS, format="concat", samples=3, context=68)
    assert [len(row) for row in rows] == [68] * 3
    assert [len(part) for part in rows[0].split("\n\n")] == [26, 26, 12]  # 2 between: the third is cut
    asked = [part[:12] for row in rows for part in row.split("\n\n")]
    assert len(set(asked[:8])) == 8  # no question comes back before all were used


def test_concat_keeps_in_context_questions_whole(tokenizer: Any) -> None:
    rows = texts(tokenizer, QUESTIONS, format="concat", in_context=3, samples=2, context=64)
    assert [row.count("Answer: ") for row in rows] == [2, 2]  # a third does not fit


def test_long_questions_are_passed_over(tokenizer: Any) -> None:
    documents = [*QUESTIONS[:2], Document(question="x" * 99, answer="y")]
    assert len(texts(tokenizer, documents, format="single", samples=2, context=40)) == 2
    with pytest.raises(DataError, match="have 2 questions of at most 40 tokens, need 3"):
        texts(tokenizer, documents, format="single", samples=3, context=40)
    with pytest.raises(DataError, match="no question fits in 5 tokens"):
        texts(tokenizer, documents, format="concat", samples=1, context=5)


def test_where_the_start_token_goes(tokenizer: Any, bos_tokenizer: Any) -> None:
    def starts(tok: Any, **layout: Any) -> list[bool]:
        rows = arrange(layout.pop("documents", PROSE), tok, Layout(**layout), generator(0, "calibration"))
        return [row[0] == 0 and 0 not in row[1:] for row in rows]

    assert starts(tokenizer, samples=4, context=8, bos="window") == [True] * 4
    assert not any(starts(bos_tokenizer, samples=4, context=8, bos="none"))
    assert starts(bos_tokenizer, samples=2, context=27) == [True] * 2  # whole documents of 26 letters
    for_questions = {"documents": QUESTIONS, "format": "concat", "samples": 2, "context": 64}
    assert starts(bos_tokenizer, **for_questions) == [True] * 2
    assert not any(starts(tokenizer, **for_questions))


def test_window_start_tokens_take_room_from_the_text(tokenizer: Any) -> None:
    rows = arrange(PROSE, tokenizer, Layout(samples=2, context=8, bos="window"), generator(0, "calibration"))
    assert [len(row) for row in rows] == [8, 8]
    with pytest.raises(DataError, match="leaves no room"):
        arrange(PROSE, tokenizer, Layout(samples=2, context=1, bos="window"), generator(0, "calibration"))


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({"format": "signle"}, "Did you mean 'single'"),
        ({"padding": "both"}, "'left' or 'right'; got 'both'"),
        ({"samples": 0}, "samples must be at least 1; got 0"),
        ({"context": -1}, "context must be at least 1; got -1"),
        (
            {"format": "zero", "rationale": True},
            "rationale works with format single or concat; got format 'zero'",
        ),
        ({"format": "single", "in_context": 2}, "in_context works with format concat"),
    ],
)
def test_impossible_layouts_are_refused(layout: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Layout(**layout)


def test_questions_are_needed_where_they_are_asked_for(tokenizer: Any) -> None:
    with pytest.raises(DataError, match="document 1 is plain text"):
        texts(tokenizer, PROSE, format="single", samples=1, context=40)
    with pytest.raises(DataError, match="no field 'rationale'"):
        texts(tokenizer, [Document(question="a", answer="b")], format="concat", rationale=True)

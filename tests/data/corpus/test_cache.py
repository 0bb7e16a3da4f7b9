from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lowdim.data import assets
from lowdim.data.corpus import cache, chat
from lowdim.data.corpus.split import Corpus, Split
from lowdim.data.corpus.vocabulary import learn
from lowdim.data.errors import AssetError, DataError
from lowdim.data.text import Document


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOWDIM_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return learn(["the cat sees the dog\nand the dog sees the cat"] * 10, 300)


def corpus(path: Path, texts: list[str]) -> Split:
    path.write_text("".join(json.dumps({"text": each}) + "\n" for each in texts))
    return Corpus([str(path)], 0.3).split()


def test_tokens_are_those_of_every_document_with_an_end(tmp_path: Path, tokenizer: Any) -> None:
    split = corpus(tmp_path / "a.jsonl", [f"the cat sees {i}" for i in range(10)])
    made = cache.tokenised(split, tokenizer)
    for part, side in ((made.train, split.train()), (made.validation, split.validation())):
        rows = [part.ids[a:b].tolist() for a, b in zip(part.starts[:-1], part.starts[1:], strict=True)]
        assert rows == [[*tokenizer(each.text)["input_ids"], tokenizer.eos_token_id] for each in side]
    assert made.train.ids.dtype == np.uint16
    assert made.facts["train"]["documents"] == 7


def test_they_are_made_once(tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    split = corpus(tmp_path / "a.jsonl", ["one", "two", "three"])
    first = cache.tokenised(split, tokenizer)
    monkeypatch.setattr(cache, "_write", lambda *_: pytest.fail("written again"))
    again = cache.tokenised(split, tokenizer)
    assert again.facts == first.facts and np.array_equal(again.train.ids, first.train.ids)
    monkeypatch.undo()
    monkeypatch.setenv("LOWDIM_CACHE", str(tmp_path / "cache"))
    other = cache.tokenised(corpus(tmp_path / "a.jsonl", ["one", "two", "four"]), tokenizer)
    assert other.facts["hash"] != first.facts["hash"]


def test_a_process_that_dies_while_it_writes_leaves_nothing_half_done(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = corpus(tmp_path / "a.jsonl", ["one", "two", "three"])

    def broken(*_: Any) -> Any:
        raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(cache, "_encoded", broken)
        with pytest.raises(OSError, match="full"):
            cache.tokenised(split, tokenizer)
    assert cache.tokenised(split, tokenizer).facts["train"]["tokens"] > 0


def test_a_cache_for_reading_alone_is_read(tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    split = corpus(tmp_path / "a.jsonl", ["one", "two", "three"])
    first = cache.tokenised(split, tokenizer)
    monkeypatch.setattr(assets, "locked", lambda _: pytest.fail("written to"))
    assert cache.tokenised(split, tokenizer).facts == first.facts
    monkeypatch.undo()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LOWDIM_CACHE", str(tmp_path / "file"))
    with pytest.raises(AssetError, match=r"cannot write .*file.* Set LOWDIM_CACHE"):
        cache.tokenised(split, tokenizer)


@pytest.mark.parametrize("kind", ["text", "sft"])
def test_halves_of_surrogate_pairs_in_chats_are_told(kind: str, tmp_path: Path, tokenizer: Any) -> None:
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = chat.PLAIN
    rows = [
        [{"role": "user", "content": f"so \ud83d {i}"}, {"role": "assistant", "content": "be it"}] for i in range(3)
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    with pytest.raises(DataError, match=r"behind '.*so ': half of a surrogate pair"):
        cache.tokenised(Corpus([str(tmp_path / "a.jsonl")], 0.3).split(), tokenizer, kind)


def test_a_long_text_is_encoded_in_pieces_to_the_same_tokens(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_LONGEST", 50)
    text = "the cat sees the dog\nand the dog sees the cat\n" * 9
    (row,) = cache.encode(tokenizer, [Document(text=text)])
    assert row == [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    assert "".join(cache._pieces("x" * 175)) == "x" * 175


def test_a_tokenizer_is_learnt_from_the_training_side_alone(tmp_path: Path) -> None:
    split = corpus(tmp_path / "a.jsonl", [f"{word} " * 30 for word in ("alpha", "beta", "gamma", "delta", "zeta")])
    held = {each.text.split()[0] for each in split.validation()}
    tokenizer = cache.learnt(split, 300)
    assert held
    assert not [word for word in held if word in tokenizer.get_vocab()]
    assert cache.learnt(split, 300).get_vocab() == tokenizer.get_vocab()


# ---------------------------------------------------------------- chats


def test_answers_are_marked_and_what_is_around_them_is_not(tokenizer: Any) -> None:
    tokenizer.chat_template = chat.PLAIN
    turns = [
        {"role": "user", "content": "who?"},
        {"role": "assistant", "content": "the cat"},
        {"role": "user", "content": "and?"},
        {"role": "assistant", "content": "the dog"},
    ]
    ((ids, marked),) = chat.encode(tokenizer, [Document(messages=tuple(turns))])
    said = tokenizer.decode([i for i, counts in zip(ids, marked, strict=True) if counts])
    assert said == "the cat<|endoftext|>the dog<|endoftext|>"
    ((_, asked),) = chat.encode(tokenizer, [Document(question="who?", answer="the cat")])
    assert sum(asked) == sum(marked) - len(tokenizer("the dog")["input_ids"]) - 1


def test_what_nothing_stands_before_is_no_answer(tokenizer: Any) -> None:
    tokenizer.chat_template = chat.PLAIN
    turns = [{"role": "assistant", "content": "hi"}, {"role": "user", "content": "?"}]
    for more, said in (([], ""), ([{"role": "assistant", "content": "yes"}], "yes<|endoftext|>")):
        ((ids, marked),) = chat.encode(tokenizer, [Document(messages=(*turns, *more))])
        assert tokenizer.decode([i for i, counts in zip(ids, marked, strict=True) if counts]) == said


CALLS = "{% for m in messages %}{{ m.role }}:{{ m.content or '' }}{{ m.tool_calls or '' }}|{% endfor %}"
"""A template that writes the calls of tools too, and begins no answer."""


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"content": ""}, ""),
        ({"content": " \n"}, ""),
        ({"content": [{"type": "text", "text": ""}]}, ""),
        ({"content": None}, ""),
        ({"content": "", "weight": 1}, ""),
        ({"content": "", "tool_calls": "sum"}, "assistant:sum|"),
        ({"content": None, "tool_calls": "sum"}, "assistant:sum|"),
        ({"content": "0"}, "assistant:0|"),
    ],
)
def test_a_blank_answer_teaches_nothing(answer: dict[str, Any], said: str, tokenizer: Any) -> None:
    tokenizer.chat_template = CALLS
    asked, blank = {"role": "user", "content": "sum?"}, {"role": "assistant", **answer}
    for more in ([], [asked, {"role": "assistant", "content": "yes"}]):
        ((ids, marked),) = chat.encode(tokenizer, [Document(messages=(asked, blank, *more))])
        assert tokenizer.decode([i for i, counts in zip(ids, marked, strict=True) if counts]) == said + (
            "assistant:yes|" if more else ""
        )


@pytest.mark.parametrize(
    ("document", "template", "said"),
    [
        (Document(text="prose"), chat.PLAIN, "the document that begins 'prose' is plain text"),
        (Document(messages=({"role": "user", "content": "a"},)), chat.PLAIN, "begins 'a' has no turn of an assistant"),
        (Document(question="a", answer="b"), None, "begins 'a': .* no chat template"),
        (Document(question="a", answer="b"), "{{ raise_exception('no') }}", "begins 'a': .* refuses this chat: no"),
        (Document(question="a", answer="b"), "{{ messages | length }}", "writes turn 2 otherwise"),
    ],
)
def test_chats_that_cannot_be_learnt_from(document: Document, template: str | None, said: str, tokenizer: Any) -> None:
    tokenizer.chat_template = template
    with pytest.raises(DataError, match=said):
        chat.encode(tokenizer, [document])

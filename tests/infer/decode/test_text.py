from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lowdim.infer.decode.text import TextStream

MERGED = ["he", "hel", "the", "Ġt", "Ã©", "ðŁ", "ðŁĺ", "ðŁĺĢ", "ä½", "ä½ł"]


@pytest.fixture(scope="module")
def byte_level() -> Any:
    """Every byte, a few merges, a special token, and a token that holds a character and a half."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: i for i, piece in enumerate([*letters, *MERGED, "x" + "Ã", "<end>"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")


@pytest.fixture(scope="module")
def pieces() -> Any:
    """A SentencePiece-like vocabulary: words that begin with a space, single bytes, special tokens."""
    words = [
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        "▁Hello",
        "▁world",
        "▁a",
        "s",
        "wor",
        "ld",
    ]
    tokenizer = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def ids(tokenizer: Any, *names: str) -> list[int]:
    found: list[int] = tokenizer.convert_tokens_to_ids(list(names))
    return found


def pushed(stream: TextStream, tokens: list[int]) -> list[str]:
    return [*(stream.push(token) for token in tokens), stream.finish()]


def of_bytes(tokenizer: Any, text: str) -> list[int]:
    return ids(tokenizer, *(f"<0x{byte:02X}>" for byte in text.encode()))


def test_a_character_over_several_tokens_comes_whole(byte_level: Any) -> None:
    tokens = ids(byte_level, "Ã", "©", "ä", "½", "ł", "ðŁ", "ĺ", "Ģ")
    assert pushed(TextStream(byte_level), tokens) == ["", "é", "", "", "你", "", "", "😀", ""]


def test_a_token_that_ends_inside_a_character_waits(byte_level: Any) -> None:
    tokens = ids(byte_level, "xÃ", "©")
    assert pushed(TextStream(byte_level), tokens) == ["", "xé", ""]


def test_half_a_character_at_the_end_is_shown_as_such(byte_level: Any) -> None:
    assert pushed(TextStream(byte_level), ids(byte_level, "x", "Ã")) == ["x", "", "\ufffd"]


def test_bytes_that_never_make_a_character_do_not_hold_the_text_back_for_ever(byte_level: Any) -> None:
    tokens = ids(byte_level, *["Ã"] * 40, "©")
    stream = TextStream(byte_level)
    shown = [stream.push(token) for token in tokens]
    assert sum(map(len, shown[:20])) >= 10
    assert "".join(shown) + stream.finish() == byte_level.decode(tokens)


def test_special_tokens_give_no_text(byte_level: Any) -> None:
    tokens = ids(byte_level, "<end>", "the", "<end>", "Ġt")
    assert pushed(TextStream(byte_level), tokens) == ["", "the", "", " t", ""]


@given(st.lists(st.integers(0, 255 + len(MERGED) + 2), max_size=60))
def test_the_pieces_are_the_text_byte_level(byte_level: Any, tokens: list[int]) -> None:
    assert "".join(pushed(TextStream(byte_level), tokens)) == byte_level.decode(tokens, skip_special_tokens=True)


@given(st.text(max_size=40), st.integers(0, 10**6))
def test_the_pieces_are_the_text_sentence_pieces(pieces: Any, text: str, seed: int) -> None:
    random_words = random.Random(seed).choices(range(258, len(pieces)), k=20)
    tokens = [258, *of_bytes(pieces, text.replace("\0", "")), *random_words, 1, *random_words]
    assert "".join(pushed(TextStream(pieces), tokens)) == pieces.decode(tokens, skip_special_tokens=True)


def test_spaces_of_sentence_pieces(pieces: Any) -> None:
    tokens = ids(pieces, "▁Hello", "▁world", "s")
    assert pushed(TextStream(pieces), tokens) == ["Hello", " world", "s", ""]
    special = ids(pieces, "▁Hello", "</s>", "▁world")
    assert "".join(pushed(TextStream(pieces), special)) == "Hello world"


def test_the_prompt_decides_about_a_leading_space(pieces: Any) -> None:
    prompt = ids(pieces, "<s>", "▁Hello")
    assert pushed(TextStream(pieces, prompt=prompt), ids(pieces, "▁world")) == [" world", ""]
    assert pushed(TextStream(pieces, prompt=prompt[:1]), ids(pieces, "▁world")) == ["world", ""]


def test_a_prompt_that_ends_inside_a_character(byte_level: Any) -> None:
    stream = TextStream(byte_level, prompt=ids(byte_level, "the", "Ã"))
    assert "".join(pushed(stream, ids(byte_level, "he", "Ġt"))) == "he t"


def test_a_stop_string_over_several_tokens_ends_the_text_before_it(byte_level: Any) -> None:
    stream = TextStream(byte_level, ["the t"])
    tokens = ids(byte_level, "x", "the", "Ġt", "he")
    assert [stream.push(token) for token in tokens] == ["x", "", "", ""]
    assert stream.stopped
    assert stream.finish() == ""


def test_what_only_looks_like_a_stop_string_is_given_back(byte_level: Any) -> None:
    stream = TextStream(byte_level, ["the end"])
    assert pushed(stream, ids(byte_level, "the", "Ġt", "the")) == ["", "the ", "t", "the"]
    assert not stream.stopped


def test_text_inside_the_token_before_the_stop_is_kept_and_after_it_is_not(byte_level: Any) -> None:
    stream = TextStream(byte_level, ["e"])
    assert stream.push(ids(byte_level, "hel")[0]) == "h"
    assert stream.stopped


def test_the_earliest_of_several_stop_strings_counts(byte_level: Any) -> None:
    stream = TextStream(byte_level, ["el", "h"])
    assert pushed(stream, ids(byte_level, "x", "hel")) == ["x", "", ""]
    overlapping = TextStream(byte_level, ["tt", "the"])
    assert pushed(overlapping, ids(byte_level, "t", "h", "x", "t", "the")) == ["", "", "thx", "", "", ""]
    assert overlapping.stopped


def test_a_stop_string_that_only_the_end_makes_certain(byte_level: Any) -> None:
    stream = TextStream(byte_level, ["\ufffd"])
    assert pushed(stream, ids(byte_level, "x", "Ã")) == ["x", "", ""]
    assert stream.stopped


@pytest.mark.parametrize("stop", [["<end>"], ["never", "<end>"], ["the end", "<end>"]])
def test_a_special_token_that_is_a_stop_string_ends_the_text(byte_level: Any, stop: list[str]) -> None:
    stream = TextStream(byte_level, stop)
    tokens = ids(byte_level, "x", "the", "<end>", "he")
    assert "".join(stream.push(token) for token in tokens) == "xthe"
    assert stream.stopped
    assert stream.finish() == ""


def test_what_only_holds_a_special_tokens_name_is_no_special_token(byte_level: Any) -> None:
    stream = TextStream(byte_level, ["<end> "])
    assert "".join(pushed(stream, ids(byte_level, "x", "<end>", "he"))) == "xhe"
    assert not stream.stopped

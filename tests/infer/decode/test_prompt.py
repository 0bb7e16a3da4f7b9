"""What a model begins from, whatever asks for it."""

from __future__ import annotations

import copy
import datetime
from typing import Any

import pytest
from tests.infer.serve.served import make_tokenizer

from lowdim.core.errors import RecipeError
from lowdim.infer.decode.prompt import encode_chat, encode_text

TURNS = [{"role": "user", "content": "hi", "name": "ann"}]


@pytest.fixture
def tokenizer() -> Any:
    return copy.deepcopy(make_tokenizer())


def test_an_empty_text_is_the_beginning_of_one(tokenizer: Any) -> None:
    assert encode_text(tokenizer, "") == [tokenizer.bos_token_id]
    assert encode_text(tokenizer, "ab") == tokenizer("ab")["input_ids"]
    tokenizer.chat_template = ""
    assert encode_chat(tokenizer, TURNS) == [tokenizer.bos_token_id]


def test_where_nothing_begins_a_text_an_empty_one_is_refused(tokenizer: Any) -> None:
    tokenizer.bos_token = None
    with pytest.raises(RecipeError, match="prompt is empty"):
        encode_text(tokenizer, "")


def test_a_template_sees_names(tokenizer: Any) -> None:
    tokenizer.chat_template = "{% for m in messages %}{{ m.name }}: {{ m.content }}{% endfor %}"
    assert encode_chat(tokenizer, TURNS) == tokenizer("ann: hi")["input_ids"]


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('no users') }}", "no users"),
        ("{{ messages[0].content + 1 }}", "concatenate str"),
        ("{{ 1 // (messages|length - 1) }}", "by zero"),
        ("{{ messages[7].content }}", "has no element 7"),
        ("{% for m in messages", "end of"),
        ("{% macro again(n) %}{{ again(n + 1) }}{% endmacro %}{{ again(0) }}", "recursion"),
    ],
)
def test_whatever_fails_in_a_template_is_told_with_its_reason(tokenizer: Any, template: str, reason: str) -> None:
    tokenizer.chat_template = template
    with pytest.raises(RecipeError, match=f"chat template refuses this chat: .*{reason}"):
        encode_chat(tokenizer, TURNS)


def test_a_conversation_is_written_as_data_are_but_for_the_day(tokenizer: Any) -> None:
    tokenizer.chat_template = "{{ strftime_now('%Y') }}{% for m in messages %}{{ m.content[0].text }}{% endfor %}"
    year = datetime.date.today().isoformat()[:4]
    for content in ("hi", [{"type": "text", "text": "hi"}]):
        assert encode_chat(tokenizer, [{"role": "user", "content": content}]) == tokenizer(f"{year}hi")["input_ids"]
    tokenizer.chat_template = "{{ messages[0].content }}"
    with pytest.raises(RecipeError, match="a part of type 'image'"):
        encode_chat(tokenizer, [{"role": "user", "content": [{"type": "image", "url": "a.png"}]}])


def shaped(tokenizer: Any, shape: str) -> Any:
    """The tokenizer with special tokens around a text, as a template says."""
    from tokenizers import processors

    known = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<s>", "</s>", "<unk>")]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=shape, pair=f"{shape} $B", special_tokens=known
    )
    return tokenizer


@pytest.mark.parametrize("shape", ["$A", "<s> $A", "$A </s>", "<s> $A </s>", "<unk> <s> $A </s> </s>"])
def test_what_is_to_be_continued_is_not_ended_first(tokenizer: Any, shape: str) -> None:
    own = tokenizer("ab")["input_ids"]
    before = [tokenizer.convert_tokens_to_ids(token) for token in shape.partition("$A")[0].split()]
    ended = shaped(tokenizer, shape)
    assert encode_text(ended, "ab") == [*before, *own]
    assert encode_text(ended, "") == (before or [tokenizer.bos_token_id])

"""What a model begins from, whatever asks for it."""

from __future__ import annotations

import copy
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
    with pytest.raises(RecipeError, match=f"chat template refuses these messages: .*{reason}"):
        encode_chat(tokenizer, TURNS)

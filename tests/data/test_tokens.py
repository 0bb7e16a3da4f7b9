"""Chats as text: what the tokenizer's template makes of them."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from lowdim.data import tokens
from lowdim.data.errors import DataError
from lowdim.data.text import Document

SAID = [{"role": "user", "content": [{"type": "text", "text": "so "}, {"type": "text", "text": "be it"}]}]
PICTURE = [{"role": "user", "content": [{"type": "image", "url": "a.png"}, {"type": "text", "text": "so"}]}]


@pytest.mark.parametrize(
    "content",
    [
        "m.content",
        "m.content | trim",
        "'' + m.content",
        "m.content if m.content is string else m.content | map(attribute='text') | join",
    ],
)
def test_contents_in_parts_are_never_written_as_python(tokenizer: Any, content: str) -> None:
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = f"{{% for m in messages %}}{{{{ m.role ~ ': ' }}}}{{{{ {content} }}}}{{% endfor %}}"
    assert tokens.written(tokenizer, Document(messages=tuple(SAID))) == "user: so be it"
    if "join" not in content:
        with pytest.raises(DataError, match="a part of type 'image', and the tokenizer's chat template knows none"):
            tokens.written(tokenizer, Document(messages=tuple(PICTURE)))


def test_a_template_that_asks_for_today_writes_the_same_every_day(tokenizer: Any) -> None:
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = (
        '{% if strftime_now is defined %}{% set day = strftime_now("%d %b %Y") %}{% endif %}'
        "{{ day ~ strftime_now( ' %Y-%m-%d ' ) ~ messages[0].content }}"
    )
    chat = ({"role": "user", "content": "so"}, {"role": "assistant", "content": "be it"})
    assert tokens.written(tokenizer, Document(messages=chat)) == "26 Jul 2024 2024-07-26 so"

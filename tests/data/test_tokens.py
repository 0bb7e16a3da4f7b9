"""Chats as text: what the tokenizer's template makes of them."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from lowdim.data import tokens
from lowdim.data.errors import DataError
from lowdim.data.text import Document, from_record

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


PARTS = (
    "{% for m in messages %}{{ m.role ~ ':' }}{% for part in m.content %}{% if part.type == 'text' %}"
    "{{ ' ' ~ part.text }}{% elif part.type == 'image' %}{{ ' <image>' }}{% endif %}{% endfor %}{% endfor %}"
)
TEXTS = "{% for m in messages %}{{ m.role ~ ':' ~ (' ' ~ m.content if m.content is string else '') }}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "content", "text"),
    [
        (PARTS, "so be it", "user: so be it"),
        (PARTS, [{"type": "text", "text": "so be it"}], "user: so be it"),
        (PARTS, [{"type": "image"}, {"type": "text", "text": "so"}], "user: <image> so"),
        (TEXTS, "so be it", "user: so be it"),
        (TEXTS, [{"type": "text", "text": "so "}, {"type": "text", "text": "be it"}], "user: so be it"),
        ("{{ messages[0].content | tojson }}", [{"type": "text", "text": "so"}], '"so"'),
        ("{{ messages[0].content | upper }}", "so be it", "SO BE IT"),
    ],
)
def test_a_template_is_given_contents_in_the_form_that_it_knows(
    tokenizer: Any, template: str, content: Any, text: str
) -> None:
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = template
    assert tokens.written(tokenizer, Document(messages=({"role": "user", "content": content},))) == text


def test_tools_are_given_to_the_template(tokenizer: Any) -> None:
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = (
        "{% if tools %}{{ tools | map(attribute='function.name') | join(' ') ~ ' | ' }}{% endif %}"
        "{% for m in messages %}{{ m.role ~ ': ' ~ (m.content or m.tool_calls[0].function.name) ~ '; ' }}{% endfor %}"
    )
    tools = [{"type": "function", "function": {"name": name, "parameters": {}}} for name in ("weather", "time")]
    call = {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "time", "arguments": {}}}]}
    chat = {"messages": [{"role": "user", "content": "When?"}, call]}
    said = "user: When?; assistant: time; "
    assert tokens.written(tokenizer, from_record(chat, "row 0")) == said
    for given in (tools, json.dumps(tools)):
        document = from_record(chat | {"tools": given}, "row 0")
        assert tokens.written(tokenizer, document) == f"weather time | {said}"
        assert document != from_record(chat, "row 0")
    for nothing in (None, [], "", "[]", "null"):
        assert from_record(chat | {"tools": nothing}, "row 0") == from_record(chat, "row 0")
    for wrong in ("weather", ["weather"], {"name": "weather"}, 7):
        with pytest.raises(DataError, match="row 0: 'tools' must be a list of objects, JSON schemas; got"):
            from_record(chat | {"tools": wrong}, "row 0")

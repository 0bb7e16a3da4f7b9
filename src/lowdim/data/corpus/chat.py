"""Chats as tokens, with the answers marked: what supervised fine-tuning learns from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from lowdim.data import tokens
from lowdim.data.errors import DataError
from lowdim.data.text import Document

PLAIN = (
    "{% for message in messages %}{{ message['role'].capitalize() + ':\n' + message['content'] + eos_token + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:\n' }}{% endif %}"
)
"""A chat template for tokenizers that have none: a line that says who speaks, then what is said."""

QUESTION = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }}"
    "{% elif message['role'] == 'user' %}{{ 'Question: ' + message['content'] + '\nAnswer:' }}"
    "{% else %}{{ message['content'] + '\n' }}{% endif %}{% endfor %}"
)
"""A template that asks as the zero-shot tasks do."""

BARE = (
    "{% for message in messages %}{{ message['content'] }}{% if message['role'] == 'assistant' %}{{ eos_token }}"
    "{% endif %}{% endfor %}"
)
"""A template that adds nothing but what ends an answer."""

TEMPLATES = {"plain": PLAIN, "question": QUESTION, "none": BARE}
"""Templates by the word that a recipe has for them."""


def turns(document: Document, where: str) -> list[dict[str, Any]]:
    """Return a document as the turns of a chat: its own, or a question and its answer.

    Raises:
        DataError: it is neither, or nobody answers in it.
    """
    found = [dict(turn) for turn in document.messages]
    if not found and document.asks:
        found = [
            {"role": "user", "content": document.question},
            {"role": "assistant", "content": document.answer},
        ]
    if not found:
        raise DataError(f"{where} is plain text, and data.kind=sft trains on chats. Give 'messages', or data.kind=text")
    if not any(turn["role"] == "assistant" for turn in found):
        raise DataError(f"{where} has no turn of an assistant, so there is no answer to learn")
    return found


def answered(tokenizer: Any, document: Document, where: str) -> tuple[str, list[tuple[int, int]]]:
    r"""Return a chat as its template writes it, and from where to where in it the assistant speaks.

    An answer begins where the template, asked for the next answer, stops, and ends where the turn does: with what
    closes it, so that a model learns to stop, but without the line break behind that. A blank answer is none: learnt
    from, it would teach to stop at once. Nor is one that nothing stands before.

    Args:
        tokenizer: with a chat template.
        document: a chat, or a question with its answer.
        where: for messages.

    Raises:
        DataError: there is no answer, no template, or the template writes a turn otherwise once others follow.
    """
    chat = turns(document, where)
    whole = tokens.written(tokenizer, Document(messages=tuple(chat), tools=document.tools))
    spans, write = list[tuple[int, int]](), partial(tokens.templated, tokenizer, tools=document.tools)
    for index, turn in enumerate(chat):
        if turn["role"] != "assistant" or not index:
            continue
        asked = write(chat[:index], asking=True)
        said = write(chat[: index + 1])
        if not (whole.startswith(said) and said.startswith(asked)):
            raise DataError(
                f"{where}: the tokenizer's chat template writes turn {index + 1} otherwise once others follow, so that "
                "the answers cannot be told from the rest. Take data.template=plain, or another template"
            )
        if not _blank(turn) or said != write([*chat[:index], _bare(turn)]):
            spans.append((len(asked), len(said.rstrip("\n"))))
    return whole, spans


def _bare(turn: dict[str, Any]) -> dict[str, Any]:
    """Return a turn without what a template may write beside its content, such as the calls of tools."""
    return {"role": turn["role"], "content": turn.get("content")}


def _blank(turn: dict[str, Any]) -> bool:
    content = turn.get("content")
    parts = content if isinstance(content, list) else [content]
    texts = [part.get("text", part) if isinstance(part, Mapping) else part for part in parts]
    return not any(str(each).strip() for each in texts if each is not None)


def _where(document: Document) -> str:
    """Return what names a document: its number would be that of one side of a split."""
    said = str(document.messages[0].get("content")) if document.messages else document.question or document.text
    return f"the document that begins {' '.join(said.split())[:60]!r}"


def _located(tokenizer: Any, document: Document) -> tuple[str, list[tuple[int, int]]]:
    """Return what `answered` does; errors say of which document, those of the template too."""
    where = _where(document)
    try:
        return answered(tokenizer, document, where)
    except DataError as error:
        if where in str(error):
            raise
        raise DataError(f"{where}: {error}") from error


def encode(tokenizer: Any, documents: Sequence[Document], last: bool = False) -> list[tuple[list[int], list[bool]]]:
    """Return the token ids of chats, and for each token whether any of an answer is in it.

    Args:
        tokenizer: a fast one, which knows the place of a token in the text.
        documents: chats, or questions with answers.
        last: whether the last answer alone counts.

    Raises:
        DataError: as `answered`; or the tokenizer is none of the fast ones.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise DataError("data.kind=sft needs a fast tokenizer (tokenizer.json), which knows where its tokens stand")
    written = [_located(tokenizer, each) for each in documents]
    for whole, _ in written:
        tokens.check_unicode(whole)
    made = tokenizer(
        [whole for whole, _ in written], add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    found = []
    for ids, places, (_, every) in zip(made["input_ids"], made["offset_mapping"], written, strict=True):
        spans = every[-1:] if last else every
        within = [any(start < stop and start < end and begin < stop for begin, end in spans) for start, stop in places]
        found.append((list(ids), within))
    return found

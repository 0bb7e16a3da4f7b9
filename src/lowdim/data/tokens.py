"""From text to token ids, with the start-of-text token handled in one place."""

from __future__ import annotations

import datetime
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

from lowdim.core.errors import suggest
from lowdim.core.lazy import torch
from lowdim.data.errors import DataError
from lowdim.data.text import Document

Bos = Literal["tokenizer", "none", "window"]
"""The start-of-text token: where the tokenizer puts it in a document, nowhere, or before each window."""

_TODAY = re.compile(r"strftime_now\(\s*(['\"])(.*?)\1\s*\)")
_THE_DAY = datetime.date(2024, 7, 26)
"""What a chat template is told when it asks for today: the day that Llama 3's says where it cannot ask."""
NEGATIVE = "-100 marks labels that do not count, not tokens: give the input_ids, with padding marked in attention_mask"


def check_bos(bos: str, tokenizer: Any) -> None:
    """Refuse an unknown policy, or one that asks for a token that the tokenizer lacks."""
    if bos not in get_args(Bos):
        raise DataError(f"bos is 'tokenizer', 'none' or 'window'; got {bos!r}. {suggest(bos, get_args(Bos))}")
    if bos == "window" and tokenizer.bos_token_id is None:
        raise DataError("bos='window' needs a start-of-text token and this tokenizer has none; use bos='none'")


def encode(tokenizer: Any, text: str, bos: str = "tokenizer") -> list[int]:
    """Return the token ids of a text, with the tokenizer's special tokens where ``bos`` is 'tokenizer'."""
    special = bos == "tokenizer"
    check_unicode(text)
    return list(tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])


def check_unicode(text: str) -> None:
    """Refuse a text that is none: half of a surrogate pair, as JSON may escape it, has no bytes.

    Raises:
        DataError: says where.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"a text of the data holds {text[error.start]!a} behind {text[max(0, error.start - 20) : error.start]!r}: "
            "half of a surrogate pair, which is no character. Repair it, for example with "
            "text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')"
        ) from None


def written(tokenizer: Any, document: Document) -> str:
    """Return a document as text, a chat as the tokenizer's own template writes it.

    Raises:
        DataError: there is no template, or it refuses the chat.
    """
    if not document.chat:
        return document.prose
    if not getattr(tokenizer, "chat_template", None):
        raise DataError(
            "the data holds chats, and this tokenizer has no chat template to write them with. Set "
            "tokenizer.chat_template, or give the rows as 'text'"
        )
    return templated(tokenizer, document.messages, tools=document.tools)


def templated(
    tokenizer: Any,
    messages: Sequence[Mapping[str, Any]],
    asking: bool = False,
    tools: Sequence[Mapping[str, Any]] = (),
    today: bool = False,
) -> str:
    """Return turns as the tokenizer's chat template writes them, the same on every day.

    Args:
        tokenizer: one with a template.
        messages: the turns. A template may know contents as texts, as parts, or as both: it is given what it writes
            all of.
        asking: whether the template is to begin the next answer.
        tools: what may be called, as JSON schemas.
        today: whether a template that asks for the day is told it.

    Raises:
        DataError: the template refuses the turns, or a part that it does not know holds no text.
    """
    template: Any = tokenizer.chat_template
    if isinstance(template, str) and not today:
        template = _TODAY.sub(lambda found: repr(_THE_DAY.strftime(found[2])), template)
    own = {} if template == tokenizer.chat_template else {"chat_template": template}
    own |= {"tools": list(tools)} if tools else {}
    said = [text for turn in messages for text in _texts(turn)]
    tried, made, errors = list[Any](), list[str](), dict[Any, DataError]()
    forms: tuple[Callable[[Mapping[str, Any]], Mapping[str, Any]], ...] = (dict, _joined, _in_parts)
    for form in forms:
        try:
            turns = [form(turn) for turn in messages]
            if turns in tried:
                continue
            tried.append(turns)
            text = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=asking, **own))
        except DataError as error:
            errors[form] = error
        except Exception as error:  # a template is a program that came with the tokenizer
            errors[form] = DataError(f"the tokenizer's chat template refuses this chat: {error}")
        else:
            if all(each in text for each in said) and not _spelt_out(turns, text):
                return text
            made += [] if _spelt_out(turns, text) else [text]
    if not made:
        raise errors.get(_joined) or errors[dict]
    return made[0]


def _texts(turn: Mapping[str, Any]) -> list[str]:
    content = turn.get("content")
    parts = content if isinstance(content, list) else [content]
    texts = [part.get("text") if isinstance(part, Mapping) else part for part in parts]
    return [text.strip() for text in texts if isinstance(text, str)]


def _spelt_out(turns: Sequence[Mapping[str, Any]], text: str) -> bool:
    """Whether a template that knows no parts wrote them as Python or JSON does."""
    parts = [turn["content"] for turn in turns if isinstance(turn.get("content"), list)]
    return any(str(each) in text or json.dumps(each, ensure_ascii=False, default=str) in text for each in parts)


def _in_parts(turn: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a turn whose content is a list of parts."""
    content = turn.get("content")
    return {**turn, "content": [{"type": "text", "text": content}]} if isinstance(content, str) else turn


def _joined(turn: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a turn whose content is one text."""
    content = turn.get("content")
    if not isinstance(content, list):
        return turn
    texts = [part if isinstance(part, str) else part.get("text") for part in content]
    if None in texts:
        kind = next(part.get("type") for part, text in zip(content, texts, strict=True) if text is None)
        raise DataError(f"a chat has a part of type {kind!r}, and the tokenizer's chat template knows none")
    return {**turn, "content": "".join(texts)}


def encode_document(tokenizer: Any, document: Document, bos: str = "tokenizer") -> list[int]:
    """Return the token ids of a document; a chat template has written the special tokens of a chat already."""
    return encode(tokenizer, written(tokenizer, document), "none" if document.chat else bos)


def opened(tokenizer: Any, text: str, bos: str = "tokenizer") -> tuple[list[int], list[int]]:
    """Return the special tokens before a text (the tokenizer's, none, or the start-of-text token), and its own tokens.

    Raises:
        DataError: the tokenizer's special tokens are not before and behind the text's own tokens.
    """
    own = encode(tokenizer, text, "none")
    if bos != "tokenizer":
        return prefix(tokenizer, bos), own
    whole = encode(tokenizer, text)
    for at in range(len(whole) - len(own) + 1):
        if whole[at : at + len(own)] == own:
            return whole[:at], own
    raise DataError("this tokenizer encodes a text differently beside its special tokens; use bos='none' or 'window'")


def prefix(tokenizer: Any, bos: str, opening: bool = False) -> list[int]:
    """Return the token ids that every window starts with.

    Args:
        tokenizer: the model's tokenizer.
        bos: see `Bos`.
        opening: whether windows are documents of their own, which 'tokenizer' opens as the tokenizer would.
    """
    if bos == "window":
        return [tokenizer.bos_token_id]
    if bos == "tokenizer" and opening and tokenizer.bos_token_id is not None:
        return [i for i in encode(tokenizer, "")[:1] if i == tokenizer.bos_token_id]
    return []


def describe(tokenizer: Any) -> dict[str, str | int]:
    """Return what identifies a tokenizer: its number of tokens and a hash of its vocabulary."""
    vocabulary = sorted(tokenizer.get_vocab().items())
    digest = hashlib.sha256(repr(vocabulary).encode()).hexdigest()
    return {"tokens": len(tokenizer), "hash": digest[:16]}


def check_vocabulary(ids: torch.Tensor, vocab_size: int) -> None:
    """Refuse token ids below zero and beyond the model's embedding.

    Example:
        >>> import torch
        >>> check_vocabulary(torch.tensor([[0, 9]]), vocab_size=10)
    """
    least, most = (int(ids.min()), int(ids.max())) if ids.numel() else (0, 0)
    if least < 0:
        raise DataError(f"token id {least} is below zero: ids count from 0. {NEGATIVE}")
    if most >= vocab_size:
        raise DataError(
            f"the text has token id {most}, but the model's embedding has {vocab_size} rows. The "
            "tokenizer does not belong to this model, or the embedding was not resized for added tokens."
        )


def pad(rows: Sequence[Sequence[int]], width: int, side: str, fill: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return ids and mask, int64 ``[rows, width]``; the mask is None where nothing had to be padded.

    Example:
        >>> ids, mask = pad([[5, 6], [7]], width=3, side="left", fill=0)
        >>> ids.tolist(), mask.tolist()
        ([[0, 5, 6], [0, 0, 7]], [[0, 1, 1], [0, 0, 1]])
    """
    ids = torch.full((len(rows), width), fill, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        place = slice(width - len(row), None) if side == "left" else slice(0, len(row))
        ids[i, place] = torch.as_tensor(row, dtype=torch.int64)
        mask[i, place] = 1
    return ids, None if bool(mask.all()) else mask


def fingerprint(input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> str:
    """Return the sha256 of shape, ids and mask, in hex; no mask counts as a mask of ones.

    Example:
        >>> import torch
        >>> ids = torch.tensor([[1, 2]])
        >>> fingerprint(ids, None) == fingerprint(ids, torch.ones_like(ids))
        True
    """
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    digest = hashlib.sha256(repr(tuple(input_ids.shape)).encode())
    digest.update(input_ids.contiguous().numpy().astype("<i8").tobytes())
    digest.update(mask.contiguous().numpy().astype("<i1").tobytes())
    return digest.hexdigest()


def pad_id(tokenizer: Any) -> int:
    """Return an id to fill padding with; the mask, not the id, says what padding is.

    The end of text comes first: a token of its own for padding may have been added behind the model's embedding.
    """
    for token in (tokenizer.eos_token_id, tokenizer.pad_token_id):
        if token is not None:
            return int(token)
    return 0

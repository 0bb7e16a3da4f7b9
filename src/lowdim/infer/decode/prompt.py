"""What a model begins from: the tokens of a text or of a conversation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lowdim.core.errors import RecipeError
from lowdim.data.errors import DataError
from lowdim.data.tokens import encode, opened, templated


def encode_text(tokenizer: Any, text: str) -> list[int]:
    """Return the tokens of a text, with whatever begins a text for this model; of an empty text that beginning alone.

    What the tokenizer puts behind a text is left out: it would end what is to be continued.

    Raises:
        RecipeError: there is not one token to begin from.
    """
    try:
        before, own = opened(tokenizer, text or "a")
    except DataError:  # its special tokens stand among the text's own
        return _begun(tokenizer, encode(tokenizer, text))
    return _begun(tokenizer, [*before, *(own if text else [])])


def encode_chat(tokenizer: Any, turns: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return the tokens of a conversation in the form of the model's chat template, up to where the answer begins.

    Raises:
        RecipeError: the template refuses the conversation, fails on it, or makes nothing of it.
    """
    try:
        text = templated(tokenizer, turns, asking=True, today=True)
    except DataError as error:
        raise RecipeError(f"{error}.") from error
    return _begun(tokenizer, tokenizer(text, add_special_tokens=False)["input_ids"])


def _begun(tokenizer: Any, ids: list[int]) -> list[int]:
    if not ids and tokenizer.bos_token_id is None:
        raise RecipeError("the prompt is empty, and this model has no token that begins a text. Give some text.")
    return ids or [tokenizer.bos_token_id]

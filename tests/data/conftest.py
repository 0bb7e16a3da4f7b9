"""A character tokenizer: ids that can be worked out by hand."""

from __future__ import annotations

import string
from typing import Any

import pytest

CHARACTERS = string.ascii_letters + string.digits + " .,:?\n+='"


def character_tokenizer(bos: bool = False) -> Any:
    """Return a tokenizer with one token a character; with ``bos`` it opens each text with ``<s>`` (id 0)."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate(["<s>", "</s>", "<unk>", *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(".|\n"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """One token a character, no start-of-text token added."""
    return character_tokenizer()


@pytest.fixture(scope="session")
def bos_tokenizer() -> Any:
    """One token a character, ``<s>`` before every text."""
    return character_tokenizer(bos=True)

"""A tokenizer learnt from text: byte-level BPE."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

END = "<|endoftext|>"


def learn(texts: Iterable[str], size: int) -> Any:
    """Return a tokenizer for Transformers that knows every byte and has merged the most frequent pairs.

    Args:
        texts: read once; what stays in memory are the counts of different words.
        size: tokens, the end of text (id 0, which is start and padding too) among them; a short text may not have so
            many pairs to merge, and gives fewer.

    Example:
        >>> tokenizer = learn(["low low lower lowest"] * 20, size=262)
        >>> tokenizer.tokenize("lowly"), len(tokenizer), tokenizer.eos_token
        (['low', 'l', 'y'], 262, '<|endoftext|>')
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token=END, eos_token=END, pad_token=END)

"""Calibration data: from any source of text or tokens to batches with a hash that names them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lowdim.core.lazy import torch
from lowdim.core.random import generator
from lowdim.data import formats, sources, tokens
from lowdim.data.batch import Batch, num_tokens, split
from lowdim.data.errors import DataError

_POSITIONS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "max_sequence_length",
    "max_seq_length",
    "seq_length",
    "context_length",
    "n_ctx",
)


@dataclass(frozen=True, eq=False)
class CalibrationData:
    """Calibration batches and what they are.

    Attributes:
        batches: the samples, each ``[sequences, context]``.
        hash: sha256 over shape, ids and masks; the same for equal tokens, however they are batched.
        samples: number of sequences.
        context: length of a sequence, padding included.
        tokens: tokens that are not padding.
        source: where the text came from, as the user wrote it.
        format: see `lowdim.data.formats`; "tokens" for samples that came as tokens.
        settings: seed, padding side, start-of-text policy and the other choices that shaped the samples; and how many
            blank rows were passed over, if any.
    """

    batches: list[Batch]
    hash: str
    samples: int
    context: int
    tokens: int
    source: str
    format: str
    settings: dict[str, Any]

    def record(self) -> dict[str, Any]:
        """Return what the manifest keeps: everything but the tokens."""
        names = ("source", "hash", "samples", "context", "tokens", "format")
        return {name: getattr(self, name) for name in names} | self.settings

    @cached_property
    def whole(self) -> Batch:
        """All samples in one batch."""
        ids = torch.cat([batch.input_ids for batch in self.batches])
        masks = [batch.attention_mask for batch in self.batches]
        if all(mask is None for mask in masks):
            return Batch(ids)
        filled = (torch.ones_like(b.input_ids) if m is None else m for b, m in zip(self.batches, masks, strict=True))
        return Batch(ids, torch.cat(list(filled)))

    def save(self, path: str | Path) -> None:
        """Write the samples as safetensors, which `calibration` reads back to the same hash."""
        from safetensors.torch import save_file

        mask = self.whole.attention_mask
        extra = {} if mask is None else {"attention_mask": mask}
        save_file({"input_ids": self.whole.input_ids, **extra}, path)


def calibration(
    source: str | Path | Iterable[Any],
    tokenizer: Any = None,
    samples: int = 128,
    context: int = 2048,
    seed: int = 0,
    format: str = "text",
    padding: str = "left",
    *,
    rationale: bool = False,
    in_context: int | None = None,
    bos: tokens.Bos = "tokenizer",
    vocab_size: int | None = None,
    tokens_per_batch: int = 4096,
) -> CalibrationData:
    """Build calibration data.

    Args:
        source: one of

            - "builtin" (the even-numbered articles of the built-in Wikipedia slice) or "builtin:NAME"
              (questions: arc_easy, arc_challenge, openbookqa, disjoint from the tasks so named; gsm8k_test);
            - a text file, a file of JSON or JSON lines or a directory, see `lowdim.data.text.read`;
            - a .safetensors file with ``input_ids`` [samples, context] and optionally ``attention_mask``;
            - a data set of the ``datasets`` library with a column ``text``, ``messages``, ``question`` and
              ``answer``, or ``input_ids``;
            - texts or such records, in a list or one after the other;
            - an iterable (a DataLoader, a list) of tensors of token ids, of mappings with ``input_ids`` and
              ``attention_mask``, or of `Batch`.
        tokenizer: the model's tokenizer; not needed for a source of tokens.
        samples: number of sequences. A source of tokens gives its first ``samples``.
        context: tokens in a sequence; an upper bound for a source of tokens, which is padded to its longest.
        seed: decides which documents, windows and questions are drawn.
        format: text, zero, single or concat, see `lowdim.data.formats`.
        padding: side on which short sequences are padded; padding is masked and never counted.
        rationale: put the worked reasoning before the answer (formats single and concat).
        in_context: with concat, that many whole questions a sequence, the rest padding.
        bos: where the start-of-text token goes, see `lowdim.data.tokens.Bos`.
        vocab_size: rows of the model's embedding, to refuse token ids beyond it.
        tokens_per_batch: positions in a batch; changes neither samples nor hash.

    Raises:
        DataError: the source is missing, malformed or too short, or an argument is out of range.
    """
    layout = formats.Layout(samples, context, format, padding, rationale, in_context, bos)
    name, found = sources.read(source)
    if isinstance(found, sources.Tokens):
        ids, mask, passed = found.padded(samples, context, padding)
        used, settings = "tokens", dict[str, Any](padding=padding)
    else:
        ids, mask, passed = _arranged(found, tokenizer, layout, seed)
        used, settings = format, dict[str, Any](seed=seed, padding=padding, bos=bos)
        settings |= {"rationale": rationale, "in_context": in_context}
    settings |= {"passed_over": passed} if passed else {}
    if vocab_size is not None:
        ids = ids if mask is None else ids.masked_fill((mask == 0) & (ids >= vocab_size), 0)
        tokens.check_vocabulary(ids, vocab_size)
    whole = Batch(ids, mask)
    return CalibrationData(
        batches=list(split([whole], tokens_per_batch)),
        hash=tokens.fingerprint(ids, mask),
        samples=len(whole),
        context=ids.shape[1],
        tokens=num_tokens(whole),
        source=name,
        format=used,
        settings=settings,
    )


def _arranged(
    documents: sources.Documents, tokenizer: Any, layout: formats.Layout, seed: int
) -> tuple[torch.Tensor, torch.Tensor | None, int]:
    if tokenizer is None:
        raise DataError("a source of text needs the model's tokenizer; got tokenizer=None")
    tokens.check_bos(layout.bos, tokenizer)
    passed: set[int] = set()
    rows = formats.arrange(documents, tokenizer, layout, generator(seed, "calibration"), passed)
    return *tokens.pad(rows, layout.context, layout.padding, tokens.pad_id(tokenizer)), len(passed)


def positions(config: Any) -> int | None:
    """Return the longest sequence that a model was made for, whatever its config calls that; None for no limit.

    Example:
        >>> from types import SimpleNamespace as Config
        >>> positions(Config(n_positions=1024)), positions(Config(text_config=Config(max_seq_len=64)))
        (1024, 64)
    """
    try:
        inner = config.get_text_config(decoder=True)
    except (AttributeError, ValueError):  # no config of Transformers, or one of several decoders
        inner = getattr(config, "text_config", None) or config
    found = (getattr(inner, name, None) for name in _POSITIONS)
    return next((limit for limit in found if isinstance(limit, int) and limit > 0), None)


def check_context(context: int, config: Any, name: str = "context") -> None:
    """Refuse a context longer than the model's positions.

    Args:
        context: tokens in a sequence.
        config: the model's configuration; one that states no `positions` is not checked.
        name: of the argument.

    Raises:
        DataError: the context is too long; the message names both numbers.
    """
    limit = positions(config)
    if limit is not None and context > limit:
        raise DataError(f"{name}={context} is longer than the model's {limit} positions; use {name}={limit} or less")

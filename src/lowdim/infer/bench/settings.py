"""What a measurement is asked to do, checked before torch is imported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from lowdim.core.errors import RecipeError, suggest
from lowdim.data.tokens import Bos
from lowdim.infer.bench.shapes import SHAPES
from lowdim.infer.decode.backend import check_cache

BITS = {"fp32": 32.0, "bf16": 16.0, "int8": 8.25, "int4": 4.25, "int3": 3.25}  # of a stored weight, scales included
DTYPES = tuple(BITS)
PREFILL = 256
"""Tokens of the prompt whose prefill is timed."""


@dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
        model: a directory, hub id, GGUF file or builtin name; None with a shape.
        shape: a named shape with random weights; None with a model.
        sparsities: shares of zeros, drawn at random, beside those that a model has; int3 skips none and is measured
            dense alone.
        dtypes: of the stored weights.
        cache: what this runtime keeps keys and values in, of `lowdim.infer.decode.backend.CACHES`.
        sparse_dtypes: those of them in which zeros are skipped too; None for all.
        tokens: generated per round.
        threads: of every contestant; None takes torch's own number.
        text: measure perplexity on it too: "builtin" or a file; None for not at all.
        bos: the start-of-text token of that text; None takes what the model's own record says of its evaluation, and
            else "tokenizer".
        revision: branch, tag or commit of a hub id.
        trust_remote_code: run the Python code that a model brings along.

    Raises:
        RecipeError: an impossible value or combination.

    Example:
        >>> Settings(shape="llama-7b", sparsities=(0.7,)).dtypes
        ('bf16', 'int8')
        >>> Settings(shape="llama-8b", sparsities=(0.7,))
        Traceback (most recent call last):
            ...
        lowdim.core.errors.RecipeError: --shape: unknown shape 'llama-8b'. Did you mean 'llama-7b'?
    """

    model: str | None = None
    shape: str | None = None
    sparsities: tuple[float, ...] = ()
    dtypes: tuple[str, ...] = ("bf16", "int8")
    cache: str = "auto"
    sparse_dtypes: tuple[str, ...] | None = None
    tokens: int = 32
    threads: int | None = None
    text: str | None = None
    bos: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if (self.model is None) == (self.shape is None):
            both = "not both" if self.model else "got neither"
            raise RecipeError(f"bench takes a MODEL or --shape {'|'.join(SHAPES)}, {both}.")
        if self.shape is not None and self.shape not in SHAPES:
            raise RecipeError(f"--shape: unknown shape {self.shape!r}. {suggest(self.shape, SHAPES)}")
        for name in self.dtypes:
            if name not in DTYPES:
                raise RecipeError(f"--dtype: unknown type {name!r}. {suggest(name, DTYPES)}")
        if not self.dtypes:
            raise RecipeError(f"--dtype: name at least one of {', '.join(DTYPES)}.")
        check_cache(self.cache, "--cache")
        for share in self.sparsities:
            if not 0 < share < 1:
                percent = f" Did you mean {share / 100:g}?" if 1 < share < 100 else ""
                raise RecipeError(f"--sparsity is a share of zeros between 0 and 1, got {share:g}.{percent}")
        if self.shape and not self.sparsities:
            raise RecipeError("--shape needs --sparsity: the weights are random, and so are the zeros.")
        if self.shape and self.text:
            raise RecipeError("--text needs a MODEL: random weights have no perplexity worth knowing.")
        if self.shape and self.revision is not None:
            raise RecipeError("--revision is of a MODEL on the hub, and a --shape has none. Leave it out.")
        if self.bos is not None and self.bos not in get_args(Bos):
            raise RecipeError(f"--bos: unknown policy {self.bos!r}. {suggest(self.bos, get_args(Bos))}")
        if self.bos is not None and self.text is None:
            raise RecipeError("--bos is of the text that perplexity is measured on. Give --text, or leave --bos out.")
        for flag, value, least in (("--tokens", self.tokens, 2), ("--threads", self.threads, 1)):
            if value is not None and value < least:
                raise RecipeError(f"{flag} must be at least {least}, got {value}.")

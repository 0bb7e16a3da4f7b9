"""What runs a model token by token: the interface, and what every backend counts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from lowdim.core.errors import LowdimError, RecipeError, suggest
from lowdim.data.calibration import positions

if TYPE_CHECKING:
    import numpy as np

LONGEST = 1 << 15  # tokens, where a config states no limit
CACHES = ("auto", "fp32", "bf16", "int8", "int4")
"""What keys and values are kept in; "auto": fp32 where all weights are, else bf16."""


class BackendFull(LowdimError):
    """Every slot of a backend is taken; close a sequence first, or open the backend with more slots."""


class Backend(Protocol):
    """A model with room for some sequences, used from one thread at a time.

    Attributes:
        vocab_size: rows of the head.
        max_length: tokens that a sequence may hold.
        slots: sequences that may be open at a time.
        eos_ids: tokens that end a text.
    """

    vocab_size: int
    max_length: int
    slots: int
    eos_ids: frozenset[int]

    def open(self) -> int:
        """Return a free slot, now taken by an empty sequence."""
        ...

    def prefill(self, slot: int, ids: Sequence[int]) -> np.ndarray:
        """Append tokens to a sequence; return the logits after the last one, float32 [vocab].

        Raises:
            LowdimError: no token, one that is not in the vocabulary, or more than the slot can hold.
        """
        ...

    def step(self, slots: Sequence[int], tokens: Sequence[int]) -> np.ndarray:
        """Append one token to each of some sequences; return float32 [slots, vocab], valid until the next call."""
        ...

    def length(self, slot: int) -> int:
        """Return how many tokens a sequence holds."""
        ...

    def cache_bytes(self, tokens: int) -> int:
        """Return the bytes of memory that the keys and values of a sequence of so many tokens take.

        Raises:
            LowdimError: it is not known.
        """
        ...

    def close(self, slot: int) -> None:
        """Give a slot back."""
        ...


def check_cache(name: str, flag: str = "cache") -> None:
    """Refuse a kind of cache that there is not.

    Raises:
        RecipeError: there is not.

    Example:
        >>> check_cache("int88")
        Traceback (most recent call last):
        lowdim.core.errors.RecipeError: cache: there is no 'int88'. Did you mean 'int8'?
    """
    if name not in CACHES:
        raise RecipeError(f"{flag}: there is no {name!r}. {suggest(name, CACHES)}")


def check_sizes(slots: int, max_length: int | None) -> None:
    """Refuse what no backend can hold.

    Example:
        >>> check_sizes(0, None)
        Traceback (most recent call last):
        lowdim.core.errors.LowdimError: slots must be at least 1, got 0.
    """
    if slots < 1:
        raise LowdimError(f"slots must be at least 1, got {slots}.")
    if max_length is not None and max_length < 1:
        raise LowdimError(f"max_length must be at least 1 token, got {max_length}.")


def longest(config: Any) -> int:
    """Return how many tokens a model was made for.

    Example:
        >>> from types import SimpleNamespace
        >>> longest(SimpleNamespace(max_position_embeddings=2048)), longest(SimpleNamespace())
        (2048, 32768)
    """
    return positions(config) or LONGEST


def end_tokens(model: Any) -> frozenset[int]:
    """Return the tokens that end a text, from the generation config or else the config.

    Example:
        >>> from types import SimpleNamespace
        >>> end_tokens(SimpleNamespace(config=SimpleNamespace(eos_token_id=[2, 7])))
        frozenset({2, 7})
    """
    for config in (getattr(model, "generation_config", None), model.config):
        found = getattr(config, "eos_token_id", None)
        if found is not None:
            return frozenset(found if isinstance(found, Iterable) else [found])
    return frozenset()


class Slots:
    """Which sequences are open and how many tokens each holds.

    Example:
        >>> slots = Slots(1, 8, 100)
        >>> slots.open(), slots.extend(0, [1, 2]), slots.lengths[0]
        (0, 0, 2)
    """

    def __init__(self, count: int, max_length: int, vocab_size: int) -> None:
        self.max_length, self.vocab_size = max_length, vocab_size
        self.lengths = [-1] * count
        self._free = list(range(count - 1, -1, -1))

    def open(self) -> int:
        """Take a free slot."""
        if not self._free:
            raise BackendFull(f"all {len(self.lengths)} slots are taken. Close a sequence, or open more slots.")
        slot = self._free.pop()
        self.lengths[slot] = 0
        return slot

    def close(self, slot: int) -> None:
        """Give a slot back."""
        self.length(slot)
        self.lengths[slot] = -1
        self._free.append(slot)

    def length(self, slot: int) -> int:
        """Return how many tokens a sequence holds."""
        if not 0 <= slot < len(self.lengths) or self.lengths[slot] < 0:
            raise LowdimError(f"slot {slot} is not open. Use what open() returned, until close().")
        return self.lengths[slot]

    def check(self, slot: int, ids: Sequence[int]) -> None:
        """Refuse what cannot be appended."""
        before = self.length(slot)
        if not ids:
            raise LowdimError("ids is empty. Give at least one token, such as the one that begins a text.")
        if min(ids) < 0 or max(ids) >= self.vocab_size:
            raise LowdimError(
                f"ids must lie in [0, {self.vocab_size}), got {min(ids)} to {max(ids)}. Does the tokenizer "
                "belong to the model?"
            )
        if before + len(ids) > self.max_length:
            raise LowdimError(
                f"a sequence of {before + len(ids)} tokens does not fit: the longest is {self.max_length}. "
                "Shorten the text."
            )

    def extend(self, slot: int, ids: Sequence[int]) -> int:
        """Count tokens in, unless `check` refuses them; return how many there were before."""
        self.check(slot, ids)
        before = self.lengths[slot]
        self.lengths[slot] = before + len(ids)
        return before

"""Any causal LM that Transformers gives a cache, one sequence at a time through its own forward."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from transformers.cache_utils import LinearAttentionCacheLayerMixin

from lowdim.core.errors import LowdimError
from lowdim.infer.decode.backend import Slots, end_tokens, longest

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_CACHES = ("past_key_values", "cache_params", "state")
"""What models call what one forward hands to the next."""


class HFBackend:
    """`Backend` by Transformers' forward.

    Raises:
        LowdimError: the model keeps nothing that a sequence could be continued from.
    """

    def __init__(self, model: PreTrainedModel, slots: int = 1, max_length: int | None = None) -> None:
        config = model.config.get_text_config(decoder=True)
        self._model = cast(Any, model)
        head, embedding = self._model.get_output_embeddings(), self._model.get_input_embeddings()
        self.vocab_size = int(config.vocab_size if head is None else head.weight.shape[0])
        self.max_length = max_length or longest(config)
        self.slots = slots
        self.eos_ids = end_tokens(model)
        self._slots = Slots(slots, self.max_length, int(embedding.weight.shape[0]))
        self._caches: list[Any] = [None] * slots
        self._ids: list[list[int]] = [[] for _ in range(slots)]
        self._logits = np.empty((slots, self.vocab_size), dtype=np.float32)
        self._turns = _turns(config)
        self._placed = "position_ids" in inspect.signature(self._model.forward).parameters
        self._cache = self._name_of_cache()

    def open(self) -> int:
        """See `Backend.open`."""
        slot = self._slots.open()
        self._caches[slot], self._ids[slot] = None, []
        return slot

    def close(self, slot: int) -> None:
        """See `Backend.close`."""
        self._slots.close(slot)
        self._caches[slot], self._ids[slot] = None, []

    def length(self, slot: int) -> int:
        """See `Backend.length`."""
        return self._slots.length(slot)

    def cache_bytes(self, tokens: int) -> int:
        """See `Backend.cache_bytes`; Transformers does not say."""
        raise LowdimError(
            "how much memory a sequence takes is known of the native engine alone, and Transformers runs this model."
        )

    def prefill(self, slot: int, ids: Sequence[int]) -> np.ndarray:
        """See `Backend.prefill`."""
        self._slots.check(slot, ids)
        # recurrent blocks take several tokens at the beginning alone: later they would forget what came before
        parts = [[token] for token in ids] if _recurs(self._caches[slot]) else [list(ids)]
        return [self._forward(slot, part) for part in parts][-1].copy()

    def step(self, slots: Sequence[int], tokens: Sequence[int]) -> np.ndarray:
        """See `Backend.step`."""
        for slot, token in zip(slots, tokens, strict=True):
            self._slots.check(slot, [token])
        for row, (slot, token) in enumerate(zip(slots, tokens, strict=True)):
            self._logits[row] = self._forward(slot, [token])
        return self._logits[: len(slots)]

    def _forward(self, slot: int, ids: list[int]) -> np.ndarray:
        before, known = self._slots.extend(slot, ids), self._ids[slot]
        known += ids
        if any(before <= turn < len(known) for turn in self._turns):
            self._caches[slot], ids = None, known
        held = {} if self._caches[slot] is None else {self._cache: self._caches[slot]}
        output = self._run(ids, len(known) - len(ids), held)
        self._caches[slot] = getattr(output, self._cache)
        logits: np.ndarray = output.logits[0, -1].float().cpu().numpy()
        return logits

    def _run(self, ids: list[int], at: int, held: Mapping[str, Any]) -> Any:
        device = self._model.get_input_embeddings().weight.device
        given = {"input_ids": torch.tensor([ids], device=device), "use_cache": True, **held}
        if self._placed:  # not every model finds out by itself how much a cache holds
            given["position_ids"] = torch.arange(at, at + len(ids), device=device)[None]
        with torch.inference_mode():
            return self._model(**given)

    def _name_of_cache(self) -> str:
        """Return what the model calls its cache, from the forwards of one token and of one more."""
        try:
            output = self._run([0], 0, {})
            found = next((name for name in _CACHES if getattr(output, name, None) is not None), None)
            if found is not None:
                self._run([0], 1, {found: getattr(output, found)})
                return found
            why, remedy = "keeps no key-value cache", "Use its own generate method"
        except Exception as error:  # whatever a model's code raises
            why = f"fails with its cache, in Transformers itself ({type(error).__name__}: {error})"
            remedy = "Try another version of Transformers"
        raise LowdimError(f"{type(self._model).__name__} {why}, so it cannot be continued token by token. {remedy}.")


def _recurs(cache: Any) -> bool:
    """Tell whether a cache holds a recurrent state."""
    return any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in getattr(cache, "layers", ()))


def _turns(config: Any) -> list[int]:
    """Return the lengths beyond which a model rotates all keys by other angles, so that those in a cache are void.

    Example:
        >>> from types import SimpleNamespace
        >>> _turns(SimpleNamespace(rope_parameters={"rope_type": "longrope", "original_max_position_embeddings": 4096}))
        [4096]
    """
    told = getattr(config, "rope_parameters", None) or {}
    parts = [told, *(each for each in told.values() if isinstance(each, Mapping))]
    return [int(each["original_max_position_embeddings"]) for each in parts if each.get("rope_type") == "longrope"]

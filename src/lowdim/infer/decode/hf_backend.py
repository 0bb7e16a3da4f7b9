"""Any causal LM that Transformers gives a cache, one sequence at a time through its own forward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from lowdim.core.errors import LowdimError
from lowdim.infer.decode.backend import Slots, end_tokens, longest

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class HFBackend:
    """`Backend` by Transformers' forward."""

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
        self._logits = np.empty((slots, self.vocab_size), dtype=np.float32)

    def open(self) -> int:
        """See `Backend.open`."""
        slot = self._slots.open()
        self._caches[slot] = None
        return slot

    def close(self, slot: int) -> None:
        """See `Backend.close`."""
        self._slots.close(slot)
        self._caches[slot] = None

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
        return self._forward(slot, list(ids)).copy()

    def step(self, slots: Sequence[int], tokens: Sequence[int]) -> np.ndarray:
        """See `Backend.step`."""
        for slot, token in zip(slots, tokens, strict=True):
            self._slots.check(slot, [token])
        for row, (slot, token) in enumerate(zip(slots, tokens, strict=True)):
            self._logits[row] = self._forward(slot, [token])
        return self._logits[: len(slots)]

    def _forward(self, slot: int, ids: list[int]) -> np.ndarray:
        self._slots.extend(slot, ids)
        device = self._model.get_input_embeddings().weight.device
        given: dict[str, Any] = {"input_ids": torch.tensor([ids], device=device), "use_cache": True}
        if self._caches[slot] is not None:
            given["past_key_values"] = self._caches[slot]
        with torch.inference_mode():
            output = self._model(**given)
        if getattr(output, "past_key_values", None) is None:
            raise LowdimError(
                f"{type(self._model).__name__} keeps no key-value cache, so it cannot be continued token by token. "
                "Use its own generate method."
            )
        self._caches[slot] = output.past_key_values
        logits: np.ndarray = output.logits[0, -1].float().cpu().numpy()
        return logits

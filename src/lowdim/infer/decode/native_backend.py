"""`Backend` by the native decode engine: one call per step for all layers and sequences."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lowdim.core.native import library
from lowdim.infer.decode.backend import Slots, end_tokens, longest
from lowdim.infer.decode.engine import LayerStruct, ModelStruct, NativeEngine, address, layer_array
from lowdim.infer.decode.families import FLOATS, PRODUCTS, Decoder, DecoderBlock, Unsupported, read
from lowdim.infer.decode.prefill import Angles, SlotCache, prefill
from lowdim.infer.sparse.storage import KINDS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CHUNK = 512  # tokens that torch takes at a time
FEW = 8  # tokens up to which the engine takes them all in one step


class NativeBackend:
    """`Backend` by the native decode engine; memory is taken as tokens come.

    Weights stay where the model has them; norms and biases are copied. What is changed in the model afterwards may or
    may not show.

    Args:
        model: a causal LM, dense or with `SparseLinear` layers.
        slots: sequences that may be open at a time.
        max_length: tokens that a sequence may hold; ``None`` for what the model was made for.
        cache: what keys and values are kept in, of `CACHES`. Every head and token has scales of its own: one in int8,
            eight for each 64 elements in int4, whose rows are rotated by signs first (QuaRot, arXiv 2404.00456).

    Raises:
        Unsupported: the engine does not compute what this model does.
        LowdimError: no room for so many slots of such a length.
    """

    def __init__(
        self, model: PreTrainedModel, slots: int = 1, max_length: int | None = None, cache: str = "auto"
    ) -> None:
        found = library()
        if found is None:
            raise Unsupported("lowdim was installed without compiled kernels")
        self._plan = plan = read(model)
        self.vocab_size = plan.head.matrix.rows
        self.max_length = max_length or longest(model.config)
        self.slots = slots
        self.eos_ids = end_tokens(model)
        self._slots = Slots(slots, self.max_length, len(plan.embedding))
        self._angles = Angles(plan, self.max_length)
        kind = FLOATS.index(plan.cache_dtype) if cache == "auto" else KINDS.index(cache)
        self._attends_in = FLOATS[kind] if kind < len(FLOATS) else plan.cache_dtype
        self._engine = NativeEngine(found, _model_struct(plan, self._angles, slots, self.max_length, kind))
        self._chosen, self._tokens, self._positions = ((ctypes.c_int32 * slots)() for _ in range(3))
        self._logits = np.empty((slots, self.vocab_size), dtype=np.float32)
        self._logits_at = self._logits.ctypes.data

    def open(self) -> int:
        """See `Backend.open`."""
        return self._slots.open()

    def length(self, slot: int) -> int:
        """See `Backend.length`."""
        return self._slots.length(slot)

    def cache_bytes(self, tokens: int) -> int:
        """See `Backend.cache_bytes`."""
        return self._engine.bytes_of(tokens)

    def close(self, slot: int) -> None:
        """See `Backend.close`."""
        self._slots.close(slot)
        self._engine.forget(slot)

    def prefill(self, slot: int, ids: Sequence[int]) -> np.ndarray:
        """See `Backend.prefill`."""
        at = self._slots.extend(slot, ids)
        self._angles.reach(at + len(ids))
        if len(ids) <= FEW:
            alone: np.ndarray = self._append(slot, ids, at, len(ids) - 1)[0]
            return alone
        with torch.inference_mode():
            tokens = torch.tensor(ids)
            cache = SlotCache(self._engine, slot, self._attends_in)
            for begin in range(0, len(ids), CHUNK):
                last = prefill(self._plan, self._angles, cache, tokens[begin : begin + CHUNK], at + begin)
            logits: np.ndarray = self._plan.head.matrix.linear(last).numpy()
        return logits

    def score(self, slot: int, ids: Sequence[int]) -> np.ndarray:
        """Append tokens as steps would, to the bit; return the logits after each of them, float32 ``[tokens, vocab]``.

        Raises:
            LowdimError: as of `prefill`.
        """
        at = self._slots.extend(slot, ids)
        self._angles.reach(at + len(ids))
        return self._append(slot, ids, at, 0)

    def _append(self, slot: int, ids: Sequence[int], at: int, first: int) -> np.ndarray:
        """Run tokens of one sequence through the engine; return the logits from the ``first`` on."""
        count = len(ids)
        logits = np.empty((count - first, self.vocab_size), dtype=np.float32)
        slots, tokens, positions = (
            (ctypes.c_int32 * count)(*values) for values in ([slot] * count, ids, range(at, at + count))
        )
        self._engine.step(count, slots, tokens, positions, first, logits.ctypes.data, self.vocab_size)
        return logits

    def step(self, slots: Sequence[int], tokens: Sequence[int]) -> np.ndarray:
        """See `Backend.step`."""
        for slot, token in zip(slots, tokens, strict=True):
            self._slots.check(slot, (token,))
        reach = 0
        for i, slot in enumerate(slots):
            position = self._slots.lengths[slot]
            self._chosen[i], self._tokens[i], self._positions[i] = slot, tokens[i], position
            self._slots.lengths[slot] = position + 1
            reach = max(reach, position + 1)
        self._angles.reach(reach)
        place = (self._chosen, self._tokens, self._positions)
        self._engine.step(len(slots), *place, 0, self._logits_at, self.vocab_size)
        return self._logits[: len(slots)]


def _model_struct(plan: Decoder, angles: Angles, slots: int, positions: int, cache: int) -> ModelStruct:
    """Return the engine's view of a model; ``plan`` and ``angles`` hold the memory that it points to."""
    return ModelStruct(
        layers=len(plan.blocks),
        heads=plan.heads,
        kv_heads=plan.kv_heads,
        head_dim=plan.head_dim,
        rotary_dim=2 * angles.half,
        activation=plan.activation,
        embedding_kind=FLOATS.index(plan.embedding.dtype),
        cache_kind=cache,
        hidden=plan.hidden,
        intermediate=plan.blocks[0].gate.matrix.rows,
        vocab=len(plan.embedding),
        slots=slots,
        positions=positions,
        norm_eps=plan.norm_eps,
        embedding_scale=plan.embedding_scale,
        attention_scale=plan.attention_scale,
        residual_scale=plan.residual_scale,
        embedding=address(plan.embedding),
        cos=address(angles.cos),
        sin=address(angles.sin),
        final_norm=address(plan.norm),
        layer=layer_array([_layer_struct(block) for block in plan.blocks]),
        head=plan.head.matrix.struct(),
    )


def _layer_struct(block: DecoderBlock) -> LayerStruct:
    products: dict[str, Any] = {name: getattr(block, name).matrix.struct() for name in PRODUCTS}
    norms = {name: address(getattr(block, name)) for name in ("attention_norm", "mlp_norm", "q_norm", "k_norm")}
    return LayerStruct(**products, **norms, rotary=block.rotary, window=block.window)

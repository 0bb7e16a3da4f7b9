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
from lowdim.infer.decode.prefill import Angles, prefill

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CHUNK = 512  # tokens that torch takes at a time
FEW = 8  # tokens up to which the engine takes them all in one step


class NativeBackend:
    """`Backend` by the native decode engine; memory is taken as tokens come.

    Weights stay where the model has them; norms and biases are copied. What is changed in the model afterwards may or
    may not show.

    Raises:
        Unsupported: the engine does not compute what this model does.
        LowdimError: no room for so many slots of such a length.
    """

    def __init__(self, model: PreTrainedModel, slots: int = 1, max_length: int | None = None) -> None:
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
        self._engine = NativeEngine(found, _model_struct(plan, self._angles, slots, self.max_length))
        room = max(slots, FEW)
        self._chosen, self._tokens, self._positions = ((ctypes.c_int32 * room)() for _ in range(3))
        self._logits = np.empty((slots, self.vocab_size), dtype=np.float32)
        self._logits_at = self._logits.ctypes.data

    def open(self) -> int:
        """See `Backend.open`."""
        return self._slots.open()

    def length(self, slot: int) -> int:
        """See `Backend.length`."""
        return self._slots.length(slot)

    def close(self, slot: int) -> None:
        """See `Backend.close`."""
        self._slots.close(slot)
        self._engine.forget(slot)

    def prefill(self, slot: int, ids: Sequence[int]) -> np.ndarray:
        """See `Backend.prefill`."""
        at = self._slots.extend(slot, ids)
        self._angles.reach(at + len(ids))
        if len(ids) <= FEW:
            return self._few(slot, ids, at)
        with torch.inference_mode():
            tokens = torch.tensor(ids)
            cache = self._engine.cache[:, :, slot]
            for begin in range(0, len(ids), CHUNK):
                last = prefill(self._plan, self._angles, cache, tokens[begin : begin + CHUNK], at + begin)
            logits: np.ndarray = self._plan.head.matrix.linear(last).numpy()
        return logits

    def _few(self, slot: int, ids: Sequence[int], at: int) -> np.ndarray:
        logits = np.empty(self.vocab_size, dtype=np.float32)
        for i, token in enumerate(ids):
            self._chosen[i], self._tokens[i], self._positions[i] = slot, token, at + i
        self._run(len(ids), len(ids) - 1, logits.ctypes.data)
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
        self._run(len(slots), 0, self._logits_at)
        return self._logits[: len(slots)]

    def _run(self, count: int, first: int, logits: int) -> None:
        self._engine.step(count, self._chosen, self._tokens, self._positions, first, logits, self.vocab_size)


def _model_struct(plan: Decoder, angles: Angles, slots: int, positions: int) -> ModelStruct:
    """Return the engine's view of a model; ``plan`` and ``angles`` hold the memory that it points to."""
    return ModelStruct(
        layers=len(plan.blocks),
        heads=plan.heads,
        kv_heads=plan.kv_heads,
        head_dim=plan.head_dim,
        rotary_dim=2 * angles.half,
        activation=plan.activation,
        embedding_kind=FLOATS.index(plan.embedding.dtype),
        cache_kind=FLOATS.index(plan.cache_dtype),
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

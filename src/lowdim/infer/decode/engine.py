"""The decode engine's C interface (``csrc/decode.h``) through ctypes."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from ctypes import POINTER, c_double, c_float, c_int32, c_int64, c_void_p
from functools import cache
from typing import Any

import torch
from torch import Tensor

from lowdim.core.errors import LowdimError
from lowdim.core.native import Library, MatrixStruct


class LayerStruct(ctypes.Structure):
    """``ld_layer``."""

    _fields_ = (
        *((name, MatrixStruct) for name in ("q", "k", "v", "o", "gate", "up", "down")),
        *((name, c_void_p) for name in ("attention_norm", "mlp_norm", "q_norm", "k_norm")),
        ("rotary", c_int32),
        ("window", c_int32),
    )


class ModelStruct(ctypes.Structure):
    """``ld_model``."""

    _fields_ = (
        *((name, c_int32) for name in ("layers", "heads", "kv_heads", "head_dim", "rotary_dim", "activation")),
        *((name, c_int32) for name in ("embedding_kind", "cache_kind")),
        *((name, c_int64) for name in ("hidden", "intermediate", "vocab", "slots", "positions")),
        *((name, c_float) for name in ("norm_eps", "embedding_scale", "attention_scale", "residual_scale")),
        *((name, c_void_p) for name in ("embedding", "cos", "sin", "final_norm")),
        ("layer", POINTER(LayerStruct)),
        ("head", MatrixStruct),
    )


class NativeEngine:
    """A decode engine. The tensors that the structs point to must outlive it.

    Raises:
        LowdimError: sizes that do not fit each other, or no memory.
    """

    def __init__(self, library: Library, model: ModelStruct) -> None:
        self._library, self._model = library, model
        create = library.bind("ld_engine_new", c_int32, c_void_p, c_void_p)
        self._step = library.bind(
            "ld_engine_step",
            c_int32,
            c_void_p,
            c_int64,
            c_void_p,
            c_void_p,
            c_void_p,
            c_int64,
            c_void_p,
            c_int64,
            c_int32,
        )
        places = (c_void_p, *[c_int64] * 4, c_void_p, c_void_p, c_int32)
        self._write = library.bind("ld_engine_write", c_int32, *places)
        self._read = library.bind("ld_engine_read", c_int32, *places)
        self._bytes = library.bind("ld_engine_bytes", c_int64, c_void_p, c_int64)
        self._forget = library.bind("ld_engine_forget", None, c_void_p, c_int64)
        handle = c_void_p()
        self._check(create(ctypes.byref(model), ctypes.byref(handle)))
        self._handle = handle
        free = library.bind("ld_engine_free", None, c_void_p)
        self._finalizer = weakref.finalize(self, free, handle)

    def _check(self, status: int) -> None:
        if status:
            raise LowdimError(
                f"the decode engine refused: {self._library.message(status)}. Where it is memory, a shorter context "
                "or fewer slots need less."
            )

    def step(self, count: int, slots: Any, tokens: Any, positions: Any, first: int, logits: int, stride: int) -> None:
        """See ``ld_engine_step``; arrays are ctypes' or addresses."""
        status = self._step(
            self._handle, count, slots, tokens, positions, first, logits, stride, torch.get_num_threads()
        )
        if status:
            self._check(status)

    def write(self, slot: int, layer: int, at: int, k: Tensor, v: Tensor) -> None:
        """Put rotated keys and values ``[kv_heads, tokens, head_dim]`` into the cache, in its kind."""
        k, v = (part.float().contiguous() for part in (k, v))
        place = (slot, layer, at, k.shape[1], k.data_ptr(), v.data_ptr(), torch.get_num_threads())
        self._check(self._write(self._handle, *place))

    def read(self, slot: int, layer: int, begin: int, end: int) -> Tensor:
        """Return what the cache holds of positions ``[begin, end)``, fp32 ``[2, kv_heads, tokens, head_dim]``."""
        found = torch.empty(2, self._model.kv_heads, end - begin, self._model.head_dim)
        place = (slot, layer, begin, end - begin, *(part.data_ptr() for part in found), torch.get_num_threads())
        self._check(self._read(self._handle, *place))
        return found

    def bytes_of(self, tokens: int) -> int:
        """Return the bytes of memory that the cache of a sequence of so many tokens takes, in whole pages."""
        return int(self._bytes(self._handle, tokens))

    def forget(self, slot: int) -> None:
        """Give the memory of a slot's keys and values back to the system."""
        self._forget(self._handle, slot)


def address(tensor: Tensor | None) -> int | None:
    """Return where a tensor lies, ``None`` for none."""
    return None if tensor is None else tensor.data_ptr()


def layer_array(layers: Sequence[LayerStruct]) -> Any:
    """Return an array of ``ld_layer``."""
    return (LayerStruct * len(layers))(*layers)


@cache
def bind_sample(library: Library) -> Any:
    """Return ``ld_sample``."""
    return library.bind("ld_sample", c_int64, c_void_p, c_int64, c_float, c_int64, c_double, c_double)

"""The kernels of sparse training (``csrc/train.h``) through ctypes."""

from __future__ import annotations

import ctypes
from ctypes import c_int32, c_int64, c_void_p
from functools import cache
from typing import Any

import torch
from torch import Tensor

from lowdim.core.errors import LowdimError, NumericalError
from lowdim.core.native import Library, library

_NAN = 6


class SparseStruct(ctypes.Structure):
    """``ld_sparse``."""

    _fields_ = (
        ("rows", c_int64),
        ("cols", c_int64),
        ("row_ptr", c_void_p),
        ("col", c_void_p),
        ("values", c_void_p),
        ("panels", c_int32),
        ("cuts", c_void_p),
    )


class Kernels:
    """The functions of the header, named without ``ld_sparse_``; a status other than success raises."""

    def __init__(self, found: Library) -> None:
        self._library = found
        word, size, pointer = c_int32, c_int64, c_void_p
        self.index = self._bind("index", size, size, pointer, size, pointer, pointer)
        self.cuts = self._bind("cuts", size, size, pointer, pointer, word, pointer)
        self.move = self._bind("move", *[size] * 2, *[pointer] * 4, size, *[pointer] * 3, size)
        self.forward = self._bind("forward", pointer, pointer, size, size, pointer, pointer, size, word)
        self.backward = self._bind(
            "backward", *[pointer] * 2, size, pointer, *[size] * 2, *[pointer] * 2, size, pointer, word
        )
        self.top = self._bind(
            "top", *[size] * 2, pointer, size, pointer, *[size] * 2, pointer, *[size] * 2, pointer, word
        )
        self.panels = found.bind("ld_sparse_panels", word, size, size, size)

    def _bind(self, name: str, *arguments: Any) -> Any:
        function = self._library.bind(f"ld_sparse_{name}", c_int32, *arguments)

        def call(*given: Any) -> None:
            status = function(*given)
            if status:
                raise (NumericalError if status == _NAN else LowdimError)(
                    f"sparse {name}: {self._library.message(status)}"
                )

        return call


@cache
def _bound(found: Library) -> Kernels:
    return Kernels(found)


def kernels() -> Kernels | None:
    """Return the compiled kernels, or ``None`` in an install without a compiler."""
    found = library()
    return None if found is None else _bound(found)


def struct(values: Tensor, row_ptr: Tensor, col: Tensor, cuts: Tensor, cols: int) -> Any:
    """Return a reference to ``ld_sparse``, valid as long as the tensors live."""
    return ctypes.byref(
        SparseStruct(
            len(row_ptr) - 1,
            cols,
            row_ptr.data_ptr(),
            col.data_ptr(),
            values.data_ptr(),
            len(cuts) + 1,
            cuts.data_ptr(),
        )
    )


def threads() -> int:
    """Return how many threads a product may use: torch's."""
    return torch.get_num_threads()

"""The kernel of distillation (``csrc/distill.h``) through ctypes."""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int32, c_int64, c_void_p
from functools import cache
from typing import Any

import torch
from torch import Tensor

from lowdim.core.errors import LowdimError
from lowdim.core.native import Library, library

_KINDS = {torch.float32: 0, torch.bfloat16: 1}


class LogitsStruct(ctypes.Structure):
    """``ld_logits``."""

    _fields_ = (("kind", c_int32), ("values", c_void_p), ("stride", c_int64))


@cache
def bound(found: Library) -> Any:
    """Return ``ld_divergence``."""
    size, word, pointer, number = c_int64, c_int32, c_void_p, c_float
    return found.bind("ld_divergence", word, *[size] * 2, *[pointer] * 3, *[number] * 3, *[pointer] * 2, word)


def usable(*logits: Tensor | None) -> bool:
    """Tell whether there is a compiled kernel for logits of this device and these dtypes."""
    given = [each for each in logits if each is not None]
    fitting = all(each.device.type == "cpu" and each.dtype in _KINDS and each.stride(1) == 1 for each in given)
    return fitting and library() is not None


def differentiate_(
    student: Tensor, teacher: Tensor | None, labels: Tensor | None, kl: float, ce: float, temperature: float
) -> tuple[Tensor, Tensor]:
    """Do what `lowdim.train.objectives.rows.differentiate_` does, for what is `usable`."""
    found = library()
    assert found is not None
    rows, words = student.shape
    out = torch.empty(2, rows)
    status = bound(found)(
        *(rows, words, _reference(student), _reference(teacher)),
        None if labels is None else labels.contiguous().data_ptr(),
        *(temperature, kl, ce, out[0].data_ptr(), out[1].data_ptr(), torch.get_num_threads()),
    )
    if status:
        raise LowdimError(f"divergence: {found.message(status)}")
    return out[0], out[1]


def _reference(logits: Tensor | None) -> Any:
    if logits is None:
        return None
    return ctypes.byref(LogitsStruct(_KINDS[logits.dtype], logits.data_ptr(), logits.stride(0)))

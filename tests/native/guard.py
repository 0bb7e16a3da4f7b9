"""Arrays that end, or begin, at a page which must not be touched: a read or write beyond them ends the process."""

from __future__ import annotations

import ctypes
import gc
import mmap

import numpy as np
from tests.native.matrices import Array

_PROTECT = ctypes.CDLL(None, use_errno=True).mprotect
_PROTECT.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def guarded(array: Array, side: str) -> Array:
    """Return a copy with a forbidden page right `side` ("behind" or "before") it."""
    page = mmap.PAGESIZE
    pages = -(-array.nbytes // page)
    area = np.frombuffer(mmap.mmap(-1, (pages + 2) * page), np.uint8)
    for guard in (0, (pages + 1) * page):
        if _PROTECT(area.ctypes.data + guard, page, 0):
            gc.collect()  # a process may have 65,530 mappings, each array takes three, and cycles keep dead ones alive
            if _PROTECT(area.ctypes.data + guard, page, 0):
                raise OSError(ctypes.get_errno(), "mprotect")
    start = page if side == "before" else (pages + 1) * page - array.nbytes
    copy = area[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy

"""The compiled kernels: found, checked and called through ctypes (``csrc/lowdim.h`` is the contract).

torch is imported before the library is loaded, so that both use the OpenMP pool that torch brings along. An install
without a compiler has no library; everything then runs in plain torch, slowly, and `NoKernelsWarning` says so once.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import warnings
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from lowdim.core.errors import LowdimError, suggest

ABI_VERSION = 6
LEVELS = ("avx512", "avx2", "neon", "portable")
FOLDER = Path(__file__).parents[1] / "_native"
FILE = {"Darwin": "liblowdim.dylib", "Windows": "lowdim.dll"}.get(platform.system(), "liblowdim.so")
VARIABLE = "LOWDIM_ISA"

_REBUILD = "Install a C++ compiler and reinstall lowdim (in a working copy: make native)."
_warned = False
chosen = Counter[tuple[str, str, str]]()
"""Sparse layers by their kind, width and share of zeros, what they lie in, and why; see `RuntimeInfo`."""


class NoKernelsWarning(UserWarning):
    """The compiled kernels are missing; the same numbers are computed in plain torch, much more slowly."""


class MatrixStruct(ctypes.Structure):
    """``ld_matrix``."""

    _fields_ = (
        ("kind", ctypes.c_int32),
        ("group", ctypes.c_int32),
        ("rows", ctypes.c_int64),
        ("cols", ctypes.c_int64),
        ("mask", ctypes.c_void_p),
        ("mask_words", ctypes.c_int64),
        ("values", ctypes.c_void_p),
        ("value_bytes", ctypes.c_int64),
        ("row_ptr", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("table", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("layout", ctypes.c_int32),
    )


@dataclass(frozen=True)
class RuntimeInfo:
    """What computes sparse products on this machine.

    Attributes:
        level: instruction set in use: "avx512", "avx2", "neon" or "portable"; "torch" without the compiled kernels.
        levels: those that are compiled in and that the processor has, best first.
        threads: threads that a product may use (``torch.get_num_threads()``).
        build: compiler and threading of the library; empty without one.
        path: the library; empty without one.
        reason: why there is no library; empty where there is.
        forms: which form of sparse layers this process has chosen so far, for which kind, width and share of zeros, in
            how many layers, and why: the times that decided (`lowdim.infer.sparse.choose`).
    """

    level: str
    levels: tuple[str, ...]
    threads: int
    build: str
    path: str
    reason: str
    forms: tuple[str, ...] = ()


class Library:
    """The loaded library; its functions are attributes named as in the header, without ``ld_``.

    Args:
        path: the shared library.
        wanted: a level to force, or ``None`` for the best.

    Raises:
        OSError: the file cannot be loaded.
        LowdimError: the library belongs to another version of lowdim, or the level is not available.
    """

    def __init__(self, path: Path, wanted: str | None = None) -> None:
        self.path = path
        self._dll = ctypes.CDLL(str(path))
        self._check_version()
        size, word, pointer, matrix = ctypes.c_int64, ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p
        self._level = self.bind("ld_level", ctypes.c_char_p, ctypes.c_char_p)
        self.levels = tuple(self.bind("ld_levels", ctypes.c_char_p)().decode().split())
        self.build: str = self.bind("ld_build", ctypes.c_char_p)().decode()
        self._message = self.bind("ld_message", ctypes.c_char_p, word)
        self.row_ptr = self.bind("ld_row_ptr", size, word, size, size, pointer, size, pointer)
        self.check = self.bind("ld_check", word, matrix)
        self.linear = self.bind("ld_linear", word, matrix, word, pointer, size, size, word, pointer, size, word)
        self.records_bytes = self.bind("ld_records_bytes", size, word, word, size, size)
        self.records = self.bind("ld_records", word, matrix, word, pointer, size, word)
        self.unpack = self.bind("ld_unpack", word, matrix, size, size, word, pointer, size, word)
        self.level = self.use(wanted)

    def bind(self, name: str, result: Any, *arguments: Any) -> Any:
        """Return a function of the library, given its types."""
        function = getattr(self._dll, name)
        function.restype, function.argtypes = result, arguments
        return function

    def _check_version(self) -> None:
        try:
            found = int(self.bind("ld_abi_version", ctypes.c_int32)())
        except AttributeError:
            raise LowdimError(f"{self.path} is not lowdim's library of kernels. {_REBUILD}") from None
        if found != ABI_VERSION:
            raise LowdimError(
                f"{self.path} has version {found} of the kernels' interface, this lowdim wants {ABI_VERSION}: it was "
                f"built for another version. {_REBUILD}"
            )

    def use(self, wanted: str | None) -> str:
        """Switch every later product to a level, ``None`` for the best; return its name.

        Raises:
            LowdimError: the level is unknown, not compiled in, or not one that the processor has.
        """
        chosen = self._level(None if wanted is None else wanted.encode())
        if chosen is None:
            assert wanted is not None
            raise LowdimError(_unavailable(wanted, self.levels))
        self.level = str(chosen.decode())
        return self.level

    def message(self, status: int) -> str:
        """Return what a status means."""
        text: str = self._message(status).decode()
        return text


def _unavailable(wanted: str, levels: tuple[str, ...]) -> str:
    here = f"Available here: {', '.join(levels)}." if levels else "There are no compiled kernels here."
    if wanted not in LEVELS:
        return f"{VARIABLE}={wanted!r} is not an instruction set. {suggest(wanted, LEVELS)} {here}"
    return f"{VARIABLE}={wanted!r} is not compiled in, or this processor lacks it. {here}"


@cache
def _find() -> tuple[Library | None, str]:
    """Return the library, or why there is none."""
    path = FOLDER / FILE
    wanted = os.environ.get(VARIABLE) or None
    if not path.is_file():
        reason = "lowdim was installed without a C++ compiler"
    else:
        try:
            return Library(path, wanted), ""
        except OSError as error:
            reason = f"{path} cannot be loaded: {error}"
    if wanted is not None:
        raise LowdimError(_unavailable(wanted, ()) + f" ({reason}). {_REBUILD}")
    return None, reason


def library() -> Library | None:
    """Return the compiled kernels, loaded on first use; ``None`` where there are none.

    ``LOWDIM_ISA`` (avx512, avx2, neon, portable), read once, forces a level.

    Raises:
        LowdimError: ``LOWDIM_ISA`` asks for what is not there, or the library belongs to another version.
    """
    return _find()[0]


def warn_without_kernels() -> None:
    """Say once per process, at the caller's line outside lowdim, that there are no compiled kernels."""
    global _warned
    found, reason = _find()
    if found is None and not _warned:
        _warned = True
        warnings.warn(
            f"Sparse layers run without compiled kernels, many times slower: {reason}. {_REBUILD}",
            NoKernelsWarning,
            stacklevel=_levels_to_caller(),
        )


def _levels_to_caller() -> int:
    """Return the ``stacklevel`` (seen from the caller of this function) of the nearest frame outside lowdim."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(("lowdim.", "torch.")):
        level, frame = level + 1, frame.f_back
    return level


def runtime_info() -> RuntimeInfo:
    """Say what computes sparse products on this machine: level, threads, build.

    Raises:
        LowdimError: as `library`.

    Example:
        >>> info = runtime_info()
        >>> info.level in ("avx512", "avx2", "neon", "portable", "torch"), info.threads >= 1
        (True, True)
    """
    found, reason = _find()
    threads = torch.get_num_threads()
    if found is None:
        return RuntimeInfo("torch", (), threads, "", "", reason)
    return RuntimeInfo(found.level, found.levels, threads, found.build, str(found.path), "", in_words(chosen))


def in_words(forms: Counter[tuple[str, str, str]], each: int = 1) -> tuple[str, ...]:
    """Return what was `chosen` in words; every layer stands for so many.

    Example:
        >>> in_words(Counter({("int8, 64 columns, 50% zeros", "dense", "packed 9 µs, dense 7 µs"): 2}))
        ('2 × int8, 64 columns, 50% zeros: dense: packed 9 µs, dense 7 µs',)
    """
    return tuple(f"{each * count} × {layer}: {form}: {why}" for (layer, form, why), count in sorted(forms.items()))

"""llama.cpp in this process: a GGUF file rounded by its quantizer, and run by its engine."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader
from torch import Tensor

from lowdim.core.errors import LowdimError
from lowdim.data.batch import Batch

LIBRARY = "llama-cpp-python"
FTYPES = {"Q8_0": 7, "Q4_0": 2, "Q4_K_M": 15, "Q3_K_M": 12, "Q2_K": 10}  # of its llama_ftype, fixed by the file format
_NEEDED = ("llama_model_load_from_file", "llama_init_from_model", "llama_get_memory", "llama_model_quantize")


def missing() -> str:
    """Return why llama.cpp cannot be run here; empty if it can."""
    if find_spec("llama_cpp") is None:
        return f"{LIBRARY} is not installed"
    lacking = [name for name in _NEEDED if not hasattr(_library(), name)]
    return f"{LIBRARY} {version(LIBRARY.replace('-', '_'))} has no {lacking[0]}; take a newer one" if lacking else ""


def requantize(source: Path, target: Path, kind: str) -> None:
    """Write the model of a GGUF file in another of llama.cpp's kinds; the file appears when it is whole.

    Raises:
        LowdimError: its quantizer cannot.
    """
    library, whole = _library(), target.with_name(f".{target.name}.tmp")
    params = library.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize, params.nthread = FTYPES[kind], True, torch.get_num_threads()
    with _quiet():
        failed = library.llama_model_quantize(str(source).encode(), str(whole).encode(), ctypes.byref(params))
    if failed:
        whole.unlink(missing_ok=True)
        raise LowdimError(f"llama.cpp cannot write {source.name} in {kind} (its quantizer returned {failed})")
    os.replace(whole, target)


def bytes_read(file: Path) -> int:
    """Return the bytes of a GGUF file's tensors that a step reads, and of one row of its embedding."""
    sizes = {tensor.name: (int(tensor.n_bytes), tensor.shape) for tensor in GGUFReader(file).tensors}
    table, shape = sizes["token_embd.weight"]
    every = sum(size for size, _ in sizes.values())
    return every - (table if "output.weight" in sizes else 0) + table // int(shape[1])


class LlamaCpp:
    """A GGUF file, loaded: a `lowdim.evaluate.quality.forward.Forward` and a `lowdim.infer.bench.decode.Decoder`.

    Args:
        file: the model.
        room: tokens that a sequence may hold.

    Raises:
        LowdimError: llama.cpp cannot load the file.
    """

    backend, reason = "llama.cpp", ""

    def __init__(self, file: Path, room: int) -> None:
        self._own = library = _library()
        with _quiet():
            library.llama_backend_init()
            self._model = library.llama_model_load_from_file(str(file).encode(), library.llama_model_default_params())
            settings = library.llama_context_default_params()
            settings.n_ctx = settings.n_batch = settings.n_ubatch = room
            settings.n_threads = settings.n_threads_batch = torch.get_num_threads()
            self._context = library.llama_init_from_model(self._model, settings) if self._model else None
        if not self._context:
            if self._model:
                library.llama_model_free(self._model)
            raise LowdimError(f"llama.cpp cannot load {file}")
        self.vocab = int(library.llama_vocab_n_tokens(library.llama_model_get_vocab(self._model)))

    def __call__(self, batches: Sequence[Batch]) -> Iterator[Tensor]:
        """Yield the logits ``[sequences, tokens, vocabulary]`` of every batch; those of padding are zero."""
        for batch in batches:
            logits = torch.zeros(*batch.input_ids.shape, self.vocab)
            for row, ids in enumerate(batch.input_ids):
                real = torch.arange(len(ids)) if batch.attention_mask is None else batch.attention_mask[row].nonzero()
                logits[row, real.flatten()] = self._logits(ids[real.flatten()].tolist())
            yield logits

    def _logits(self, ids: Sequence[int]) -> Tensor:
        library, count = self._own, len(ids)
        batch = library.llama_batch_init(count, 0, 1)
        try:
            batch.n_tokens = count
            for place, token in enumerate(ids):
                batch.token[place], batch.pos[place] = token, place
                batch.n_seq_id[place], batch.seq_id[place][0], batch.logits[place] = 1, 0, 1
            self._clear()
            self._check(library.llama_decode(self._context, batch))
            found = library.llama_get_logits(self._context)
            return torch.from_numpy(np.ctypeslib.as_array(found, (count, self.vocab)).copy())
        finally:
            library.llama_batch_free(batch)

    def prefill(self, ids: Sequence[int]) -> float:
        """Time a prompt."""
        self._clear()
        begun = time.perf_counter()
        self._feed(ids)
        return time.perf_counter() - begun

    def decode(self, ids: Sequence[int], tokens: int) -> list[float]:
        """Time greedy steps, the choice of the token included."""
        self._clear()
        token, seconds = self._feed(ids), []
        for _ in range(tokens):
            begun = time.perf_counter()
            token = self._feed([token])
            seconds.append(time.perf_counter() - begun)
        return seconds

    def _feed(self, ids: Sequence[int]) -> int:
        """Take tokens in and return the likeliest next one."""
        library = self._own
        given = (ctypes.c_int32 * len(ids))(*ids)
        self._check(library.llama_decode(self._context, library.llama_batch_get_one(given, len(ids))))
        last = library.llama_get_logits_ith(self._context, -1)
        return int(np.argmax(np.ctypeslib.as_array(last, (self.vocab,))))

    def _clear(self) -> None:
        self._own.llama_memory_clear(self._own.llama_get_memory(self._context), True)

    @staticmethod
    def _check(failed: int) -> None:
        if failed:
            raise LowdimError(f"llama.cpp could not compute a batch (llama_decode returned {failed})")

    def close(self) -> None:
        """Give its memory back."""
        with _quiet():
            self._own.llama_free(self._context)
            self._own.llama_model_free(self._model)


def _library() -> Any:
    return import_module("llama_cpp")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what llama.cpp says of every tensor off the terminal."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)

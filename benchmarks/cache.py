"""The cache of keys and values in bf16, int8 and int4: perplexity through it, its bytes, the speed of steps over it.

Every token of a text goes through the native engine as in a step, so that all keys and values it sees are the cache's.
Speed is measured in turn, at a full context.

    python benchmarks/cache.py --docs docs/runtime.md
    python benchmarks/cache.py --only speed --context 2048
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from pages import results
from runtime import SMOL, Row, finish, parser

from lowdim.data.windows import windows
from lowdim.infer.bench.timing import threads
from lowdim.infer.decode.backend import Backend
from lowdim.infer.decode.native_backend import NativeBackend
from lowdim.infer.decode.open import open_backend
from lowdim.infer.decode.ready import open_ready

CACHES = ("bf16", "int8", "int4")
WINDOWS, CONTEXT = 2, 4096
TURNS, TOKENS = 5, 4
WORSE = {"int8": 1.005, "int4": 1.02}


def opened(dtype: str) -> tuple[Any, Any]:
    """Return the embedded model with weights of a kind, and its tokenizer."""
    return open_ready(SMOL, dtype=dtype)


def perplexities(context: int) -> Iterator[Row]:
    """Of the built-in text, token by token through each cache; weights in int8."""
    model, tokenizer = opened("int8")
    ids = windows("builtin", tokenizer, context, limit=WINDOWS).input_ids
    found = {
        cache: statistics.mean(_losses(NativeBackend(model, max_length=context, cache=cache), ids)) for cache in CACHES
    }
    for cache, most in WORSE.items():
        measure = f"perplexity through a cache in {cache} over bf16, {len(ids)} windows of {context} tokens"
        detail = {name: round(float(np.exp(loss)), 4) for name, loss in found.items()} | {"unit": "perplexity"}
        yield Row(
            measure,
            float(np.exp(found[cache] - found["bf16"])),
            most,
            torch.get_num_threads(),
            at_most=True,
            detail=detail,
        )


def _losses(backend: NativeBackend, ids: torch.Tensor) -> Iterator[float]:
    """Yield the mean loss of each window."""
    for row in ids:
        slot, loss = backend.open(), 0.0
        for part, following in zip(row[:-1].split(64), row[1:].split(64), strict=True):
            logits = torch.from_numpy(backend.score(slot, part.tolist()))
            loss += torch.nn.functional.cross_entropy(logits, following, reduction="sum").item()
        backend.close(slot)
        yield loss / (len(row) - 1)


def sizes(context: int) -> Iterator[Row]:
    """Of a sequence of so many tokens."""
    model, _ = opened("bf16")
    found = {
        cache: open_backend(model, max_length=context, cache=cache).backend.cache_bytes(context) for cache in CACHES
    }
    for cache, most in (("int8", 0.53), ("int4", 0.38)):
        detail = {name: round(size / context) for name, size in found.items()} | {"unit": "bytes per token"}
        measure = f"bytes of a cache in {cache} over bf16, {context} tokens"
        yield Row(measure, found[cache] / found["bf16"], most, torch.get_num_threads(), at_most=True, detail=detail)


def speed(context: int) -> Iterator[Row]:
    """Steps of one sequence after so many tokens; weights in int8."""
    model, tokenizer = opened("int8")
    prompt = windows("builtin", tokenizer, context, limit=1).input_ids[0].tolist()
    backends = {}
    for cache in CACHES:
        backend = open_backend(model, max_length=context + 2 * TURNS * TOKENS, cache=cache).backend
        backend.prefill(backend.open(), prompt)
        backends[cache] = backend
    for count in sorted({1, torch.get_num_threads()}):
        with threads(count):
            yield from _in_turn(backends, context, count)


def _in_turn(backends: dict[str, Backend], context: int, count: int) -> Iterator[Row]:
    seconds: dict[str, list[float]] = {cache: [] for cache in backends}
    for turn in range(TURNS):
        for cache, backend in backends.items():
            taken = []
            for token in range(TOKENS):
                begun = time.perf_counter()
                backend.step([0], [100 + token])
                taken.append(time.perf_counter() - begun)
            if turn:
                seconds[cache].append(statistics.median(taken))
    for cache in ("int8", "int4"):
        ratio = statistics.median(a / b for a, b in zip(seconds["bf16"], seconds[cache], strict=True))
        detail = {name: round(1 / statistics.median(all_), 2) for name, all_ in seconds.items()} | {"unit": "tokens/s"}
        measure = f"SmolLM2-135M decode, int8, at {context} tokens, cache in {cache} over bf16"
        yield Row(measure, ratio, 1.0, count, detail=detail)


PARTS: dict[str, Callable[[int], Iterator[Row]]] = {"sizes": sizes, "speed": speed, "perplexity": perplexities}


def main() -> None:
    """Measure the parts that were asked for, print and keep a table."""
    arguments = parser(__doc__, PARTS)
    arguments.add_argument("--context", type=int, default=CONTEXT)
    given = arguments.parse_args()
    rows = []
    for name in given.only or PARTS:
        for row in PARTS[name](given.context):
            rows.append(row)
            print(f"{row.measure:<88} {row.threads:>3} {row.ratio:.4f} {row.detail}", flush=True)
    if not given.only:
        given.json = given.json or results("cache")
    finish(rows, "cache", given)


if __name__ == "__main__":
    main()

"""Tokens per second of two models, measured in turn on this machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lowdim.models.load import load

ROUNDS = 5
NOTE = "Hugging Face generate, batch 1, greedy, a dense product over the zeros"


def measure_speed(dense: Path, sparse: Path, dtype: torch.dtype, tokens: int) -> dict[str, Any]:
    """Return tokens per second of greedy generation, dense against sparse: medians of interleaved rounds.

    Args:
        dense: directory of the model before.
        sparse: directory of the model after.
        dtype: that both are run in.
        tokens: tokens generated per round.
    """
    models = [load(path, dtype=dtype) for path in (dense, sparse)]
    prompt = torch.arange(1, 17)[None] % models[0].config.vocab_size
    runs = [_generator(model, prompt, tokens) for model in models]
    for run in runs:
        run()
    seconds: list[list[float]] = [[], []]
    for _ in range(ROUNDS):
        for times, run in zip(seconds, runs, strict=True):
            begun = time.perf_counter()
            run()
            times.append(time.perf_counter() - begun)
    rates = [round(tokens / statistics.median(times), 2) for times in seconds]
    return {"dense_tokens_per_s": rates[0], "sparse_tokens_per_s": rates[1], "note": NOTE}


def _generator(model: Any, prompt: torch.Tensor, tokens: int) -> Callable[[], object]:
    def run() -> object:
        with torch.inference_mode():
            return model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                do_sample=False,
                pad_token_id=0,
            )

    return run

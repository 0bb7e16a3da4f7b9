"""Tokens per second of two models, measured in turn on this machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lowdim.data.windows import Windows
from lowdim.models.load import load

MeasureSpeed = Callable[[Path, Path, torch.dtype, int, Windows | None], dict[str, Any]]
"""Takes the directories of the dense and the sparse model, the dtype of the computation, the tokens to generate and the
text that perplexity was measured on. Returns the sidecar's ``speed``: "dense_tokens_per_s", "sparse_tokens_per_s" and
"note" at least."""

ROUNDS = 5
NOTE = "Hugging Face generate, batch 1, greedy, a dense product over the zeros"


def measure_speed(
    dense: Path, sparse: Path, dtype: torch.dtype, tokens: int, text: Windows | None = None
) -> dict[str, Any]:
    """Return tokens per second of greedy generation, dense against sparse: medians of interleaved rounds.

    Both run in Hugging Face Transformers: what a user gets who loads the sparse model without this package.

    Args:
        dense: directory of the model before.
        sparse: directory of the model after.
        dtype: that both are run in.
        tokens: tokens generated per round.
        text: not looked at: both compute what the run has measured on it.
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

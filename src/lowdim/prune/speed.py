"""Tokens per second of two models, measured in turn on this machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from lowdim.core.progress import Progress, Silent
from lowdim.data.windows import Windows
from lowdim.models.load import load

MeasureSpeed = Callable[[Path, Path, torch.dtype, int, Windows | None, Progress], dict[str, Any]]
"""Takes the directories of the dense and the sparse model, the dtype of the computation, the tokens to generate, the
text that perplexity was measured on, and what is told of stages. Returns the sidecar's ``speed``:
"dense_tokens_per_s", "sparse_tokens_per_s" and "note" at least."""

ROUNDS, WARM_UP = 5, 4
SECONDS = 60.0
"""That the rounds may take."""
NOTE = "Hugging Face generate, batch 1, greedy, a dense product over the zeros"


def measure_speed(
    dense: Path,
    sparse: Path,
    dtype: torch.dtype,
    tokens: int,
    text: Windows | None = None,
    progress: Progress | None = None,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Return tokens per second of greedy generation, dense against sparse: medians of interleaved rounds.

    Both run in Hugging Face Transformers: what a user gets who loads the sparse model without this package.

    Args:
        dense: directory of the model before.
        sparse: directory of the model after.
        dtype: that both are run in.
        tokens: tokens generated per round; fewer where `SECONDS` do not hold them.
        text: not looked at: both compute what the run has measured on it.
        progress: told of the rounds.
        trust_remote_code: run the modelling code that the models bring along.
    """
    models = [load(path, dtype=dtype, trust_remote_code=trust_remote_code) for path in (dense, sparse)]
    for model in models:
        model.generation_config = GenerationConfig()  # without beams, or whatever else it has of its own
    prompt = torch.arange(1, 17)[None] % models[0].config.get_text_config().vocab_size
    seconds: list[list[float]] = [[], []]
    with (progress or Silent()).stage("Measure speed", ROUNDS, "rounds") as stage:
        slowness = sum(_seconds(model, prompt, WARM_UP) for model in models) / WARM_UP
        tokens = max(1, min(tokens, int(SECONDS / ROUNDS / slowness)))
        for _ in range(ROUNDS):
            for times, model in zip(seconds, models, strict=True):
                times.append(_seconds(model, prompt, tokens))
            stage.advance()
    rates = [round(tokens / statistics.median(times), 2) for times in seconds]
    return {"dense_tokens_per_s": rates[0], "sparse_tokens_per_s": rates[1], "note": NOTE}


def _seconds(model: Any, prompt: torch.Tensor, tokens: int) -> float:
    """Return how long a model takes to generate so many tokens."""
    begun = time.perf_counter()
    with torch.inference_mode():
        model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            pad_token_id=0,
        )
    return time.perf_counter() - begun

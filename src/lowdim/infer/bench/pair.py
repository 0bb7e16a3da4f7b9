"""A pruned model beside the one it was made from, as a pruning run measures them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lowdim.core.errors import LowdimError
from lowdim.core.progress import Progress, Silent
from lowdim.infer.bench import models
from lowdim.infer.bench.errors import BenchError
from lowdim.infer.bench.result import ModelSpeed
from lowdim.infer.bench.run import measure
from lowdim.infer.bench.settings import Settings
from lowdim.infer.bench.timing import Deadline
from lowdim.models.disk.checkpoint import Checkpoint

if TYPE_CHECKING:
    from lowdim.data.windows import Windows

WINDOWS = 6
"""Of the text, for the perplexity of every form: enough to rank them, not to publish."""
SECONDS = 60.0
"""That all of it may take, on a machine that other work shares too."""


def measure_pair(
    dense: Path,
    sparse: Path,
    dtype: torch.dtype,
    tokens: int,
    text: Windows | None = None,
    progress: Progress | None = None,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Measure a dense model in Hugging Face and in this runtime, and the pruned one in this runtime.

    Args:
        dense: directory of the model before.
        sparse: directory of the model after.
        dtype: that the run computed in, and that its weights are measured in unless they are stored in bf16; int8 and
            int4 are measured beside it.
        tokens: generated per round; fewer where they come slowly.
        text: windows to measure perplexity on; a few of them are used.
        progress: told of stages and their advance.
        trust_remote_code: run the modelling code that the models bring along.

    Returns:
        What a run's sidecar keeps under ``speed``: the two rates that are set side by side, what they are, and all
        that was measured (`lowdim.infer.bench.result.Result`) under ``runtime``. Where neither memory nor `SECONDS`
        hold int8 and int4 beside the rest, they are left out; where memory does not hold the rest, or the model cannot
        be run token by token, a note says so and nothing is measured: a finished run must not fail for it.
    """
    deadline = Deadline(SECONDS)
    try:
        whole = dtype == torch.float32 and Checkpoint(dense).dtype != torch.bfloat16
        unrounded, stored = "fp32" if whole else "bf16", models.coded_as(Checkpoint(sparse), True, False)
        kind = stored or unrounded
        few = tuple(dict.fromkeys((unrounded, kind)))
        asked = Settings(
            model=str(sparse),
            dtypes=few,
            sparse_dtypes=None if stored is None else (stored,),
            tokens=max(tokens, 2),
            trust_remote_code=trust_remote_code,
        )
        settings, base = _that_fits(asked, (*few, "int8", "int4"))
        found = measure(replace(base, original=dense), settings, _few(text), progress or Silent(), deadline, needed=few)
    except LowdimError as error:
        return {"note": str(error)}
    torch_dense = _find(found.models, "torch", unrounded, sparse=False)
    ours = _find(found.models, "lowdim", kind, sparse=base.sparse)
    return {
        "dense_tokens_per_s": torch_dense.tokens_per_s,
        "sparse_tokens_per_s": ours.tokens_per_s,
        "note": f"batch 1, greedy; dense in Hugging Face generate ({unrounded}), sparse in this runtime ({kind})",
        "runtime": found.to_dict(),
    }


def _that_fits(asked: Settings, more: tuple[str, ...]) -> tuple[Settings, models.Base]:
    """Return what to measure of a model, and the model: in more dtypes where memory holds them."""
    settings = replace(asked, dtypes=tuple(dict.fromkeys(more)))
    try:
        return settings, models.loaded_base(settings)
    except BenchError:
        return asked, models.loaded_base(asked)


def _few(text: Windows | None) -> Windows | None:
    """Return some windows, spread evenly over the text."""
    if text is None or len(text) <= WINDOWS:
        return text
    chosen = torch.arange(WINDOWS) * len(text) // WINDOWS
    return replace(text, input_ids=text.input_ids[chosen], protocol=text.protocol | {"windows": WINDOWS})


def _find(rows: tuple[ModelSpeed, ...], engine: str, dtype: str, sparse: bool) -> ModelSpeed:
    return next(row for row in rows if (row.engine, row.dtype, row.sparsity > 0) == (engine, dtype, sparse))

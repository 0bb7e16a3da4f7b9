"""A model by name, made ready to generate as fast as it can here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedModel

from lowdim.core.errors import CheckpointError
from lowdim.infer.sparse.accelerate import accelerate
from lowdim.infer.sparse.linear import SparseLinear
from lowdim.infer.sparse.load import load
from lowdim.models.disk.source import resolve

_KINDS = {"bfloat16": "bf16", "float16": "fp32", "float32": "fp32"}  # no kernel computes in fp16


def open_ready(spec: str, revision: str | None = None, dtype: str | None = None) -> tuple[PreTrainedModel, Any]:
    """Return a model whose layers skip zeros, and its tokenizer.

    Args:
        spec: whatever `lowdim.models.disk.source.resolve` finds.
        revision: branch, tag or commit of a hub id.
        dtype: "fp32", "bf16", "int8" or "int4"; ``None`` keeps every number as it is stored.

    Raises:
        CheckpointError: there is no such model, it cannot be used, or it has no tokenizer.
        LowdimError: an unknown dtype.
    """
    source = resolve(spec, revision=revision)
    tokenizer = tokenizer_of(spec, source.path)
    kind = dtype or ("fp32" if source.dtype == "float16" else None)
    model = load(source.path, kind)
    if not any(isinstance(module, SparseLinear) for module in model.modules()):
        accelerate(model, dtype=kind or _KINDS[source.dtype])
    return model, tokenizer


def tokenizer_of(spec: str, path: Path) -> Any:
    """Return the tokenizer that lies beside a model's weights.

    Raises:
        CheckpointError: there is none that can be read.
    """
    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, ImportError) as error:
        raise CheckpointError(
            f"{spec} has no tokenizer beside its weights. Copy the tokenizer's files there."
        ) from error

"""A model by name, made ready to generate as fast as it can here."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from lowdim.data.calibration import check_context
from lowdim.infer.sparse.accelerate import accelerate
from lowdim.infer.sparse.linear import SparseLinear
from lowdim.infer.sparse.load import load
from lowdim.models.disk.source import resolve
from lowdim.models.load import need_tokenizer, read_placed

_KINDS = {"bfloat16": "bf16", "float16": "fp32", "float32": "fp32"}  # no kernel computes in fp16


def open_ready(
    spec: str,
    revision: str | None = None,
    dtype: str | None = None,
    trust_remote_code: bool = False,
    context: int | None = None,
) -> tuple[PreTrainedModel, Any]:
    """Return a model whose layers skip zeros, and its tokenizer.

    Args:
        spec: whatever `lowdim.models.disk.source.resolve` finds.
        revision: branch, tag or commit of a hub id.
        dtype: "fp32", "bf16", "int8", "int4" or "int3"; ``None`` keeps every number as it is stored.
        trust_remote_code: run the Python code that a model brings along.
        context: tokens that a sequence is to hold.

    Raises:
        DataError: the model has fewer positions.
        CheckpointError: there is no such model, it cannot be used, or it has no tokenizer.
        LowdimError: an unknown dtype.
    """
    source = resolve(spec, revision=revision, trust_remote_code=trust_remote_code)
    if context is not None:
        check_context(context, read_placed(source.path, trust_remote_code)[0], "--context")
    tokenizer = need_tokenizer(spec, source.path, trust_remote_code)
    kind = dtype or ("fp32" if source.dtype == "float16" else None)
    model = load(source.path, kind, trust_remote_code=trust_remote_code)
    if not any(isinstance(module, SparseLinear) for module in model.modules()):
        accelerate(model, dtype=kind or _KINDS[source.dtype])
    return model, tokenizer

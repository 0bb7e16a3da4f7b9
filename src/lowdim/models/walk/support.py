"""Whether a model can be pruned as it runs, told from its config alone."""

from __future__ import annotations

import torch

from lowdim.core.errors import LowdimError
from lowdim.models.disk.source import config_directory
from lowdim.models.structure.layers import Layer
from lowdim.models.walk.skeleton import empty_model
from lowdim.models.walk.stream import Stream

SUPPORTED = "supported"


def prunable(stream: Stream) -> tuple[list[tuple[int, Layer]], list[tuple[str, str]]]:
    """Return the prunable layers with their blocks' indices, and what is left dense with the reason.

    Raises:
        LowdimError: no layer is prunable.
    """
    found: list[tuple[int, Layer]] = []
    skipped: list[tuple[str, str]] = []
    for index in range(len(stream)):
        layers, left = stream.describe(index)
        found += [(index, layer) for layer in layers]
        skipped += left
    if not found:
        why = f"{skipped[0][0]}: {skipped[0][1]}" if skipped else "its blocks hold no matrix"
        raise LowdimError(f"found no prunable layer in {type(stream.model).__name__}: {why}.")
    return found, skipped


def verdict(spec: str, revision: str | None = None, trust_remote_code: bool = False) -> str:
    """Return "supported", or "refused: " and the reason that `lowdim.prune.api.prune` would give.

    Of a hub id, the config alone is fetched. Methods that look at weights alone do without a walk, and prune some
    models that this refuses.

    Args:
        spec: a directory, hub id, GGUF file or ``builtin:`` name.
        revision: branch, tag or commit of a hub id.
        trust_remote_code: run the modelling code that the model brings along.
    """
    try:
        path = config_directory(spec, revision, trust_remote_code)
        return judge(Stream(empty_model(path, torch.float32, trust_remote_code)))
    except LowdimError as error:
        return f"refused: {error}"


def judge(stream: Stream) -> str:
    """Return what `verdict` says of a model that is open already."""
    try:
        prunable(stream)
        stream.manners  # noqa: B018 - finds out, or refuses
    except LowdimError as error:
        return f"refused: {error}"
    return SUPPORTED

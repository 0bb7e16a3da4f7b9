"""Whether masks and weights agree, after checkpoints, averages and whatever else has written one of the two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from lowdim.train.sparse.distributed import any_rank, local
from lowdim.train.sparse.layer import Held


def zeros(layers: Sequence[Held]) -> float:
    """Return the share of zeros that the masks leave."""
    size = sum(layer.size for layer in layers)
    return 1.0 - sum(layer.kept for layer in layers) / size if size else 0.0


def alive(weight: Tensor) -> int:
    """Count the weights that are not zero, of this rank's part."""
    return int(torch.count_nonzero(local(weight.detach())))


def _zeros_in_weights(layers: Sequence[Held]) -> float:
    sharded = [isinstance(layer.parameter, DTensor) for layer in layers]
    sizes = [
        local(layer.parameter).numel() if cut else prod(layer.shape) for layer, cut in zip(layers, sharded, strict=True)
    ]
    return 1.0 - sum(alive(layer.parameter) for layer in layers) / max(1, sum(sizes))


def disagreement(layers: Sequence[Held]) -> str:
    """Say by how much the weights are denser than their masks; nothing if they are not."""
    wrong = [layer.name for layer in layers if layer.astray()]
    if not wrong:
        return ""
    return (
        f"the masks leave {zeros(layers):.2%} zeros, but the weights have {_zeros_in_weights(layers):.2%}: since the "
        f"last step somebody has written weights that are off, first in {wrong[0]}. An average: call settle(). A "
        "checkpoint: load the state that SparseTraining saved with it"
    )


def misfit(layers: Sequence[Held], state: Mapping[str, Any], everywhere: bool) -> str:
    """Say why a state is not that of the weights, as somebody else wrote them last; nothing if it is.

    Args:
        layers: whose weights they are.
        state: of `SparseTraining`.
        everywhere: whether all ranks must find the same; they all call this then.
    """
    counts = {layer.name: layer.astray(state["masks"][layer.name]) for layer in layers}
    wrong = [name for name, count in counts.items() if count]
    had: Mapping[str, int] = state.get("alive", {})  # older states have no counts
    lost = [
        layer.name
        for layer in layers
        if not isinstance(layer.parameter, DTensor) and alive(layer.written()) < 0.9 * had.get(layer.name, 0)
    ]
    if everywhere:
        wrong, lost = any_rank(wrong), any_rank(lost)
    if wrong:
        how = f"its masks switch off {sum(counts.values())} weights that are not zero, first in {wrong[0]}"
    elif lost:
        how = f"of the weights that were not zero when it was saved, many are, first in {lost[0]}"
    else:
        return ""
    return (
        f"this state of SparseTraining is not that of the model's weights: {how}. They are of a dense model, of "
        "another run or of another step. Load model and state from one checkpoint, the model first; nothing has been "
        "changed"
    )


def overwritten(layers: Sequence[Held]) -> str:
    """Say how many weights of a model that was sparse already its first masks have zeroed; nothing if it was not."""
    written = {layer.name: layer.written() for layer in layers}
    there = 1.0 - sum(alive(w) for w in written.values()) / max(1, sum(w.numel() for w in written.values()))
    gone = sum(layer.astray(layer.state()) for layer in layers)
    if there < zeros(layers) - 0.01 or not gone:
        return ""
    return (
        f"{there:.2%} of the weights were zero already, and the masks drawn ({zeros(layers):.2%} zeros) have zeroed "
        f"{gone} of the others. To go on with the zeros that there are, give them: masks={{name: weight != 0}} or, "
        "after another SparseTraining, masks=training.masks"
    )

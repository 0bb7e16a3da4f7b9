"""What a causal LM is called with for a batch."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lowdim.data.batch import Batch


def model_inputs(model: nn.Module, batch: Batch, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Return the keyword arguments for one batch, those alone that the model's ``forward`` accepts.

    With padding, the positions of the real tokens count from 0, so that padding on the left changes nothing for models
    with absolute positions either.

    Example:
        >>> class Model(nn.Module):
        ...     def forward(self, input_ids, attention_mask, position_ids): ...
        >>> padded = Batch(torch.tensor([[0, 5, 6]]), torch.tensor([[0, 1, 1]]))
        >>> model_inputs(Model(), padded)["position_ids"]
        tensor([[0, 0, 1]])
    """
    accepted = inspect.signature(model.forward).parameters
    options: dict[str, Any] = {}
    mask = batch.attention_mask
    if mask is not None:
        options |= {
            "attention_mask": mask.to(device),
            "position_ids": (mask.cumsum(1) - 1).clamp(min=0).to(device),
        }
    kept = {name: value for name, value in options.items() if name in accepted}
    if "use_cache" in accepted or any(p.kind is p.VAR_KEYWORD for p in accepted.values()):
        kept["use_cache"] = False  # a cache would be state among the arguments of the blocks
    return {"input_ids": batch.input_ids.to(device), **kept}


def unpadded(batch: Batch) -> Iterator[tuple[Tensor, Batch]]:
    """Yield a batch's sequences without padding, those of one length together, and which rows they are.

    Example:
        >>> padded = Batch(torch.tensor([[0, 5, 6], [7, 8, 9]]), torch.tensor([[0, 1, 1], [1, 1, 1]]))
        >>> [(rows.tolist(), part.input_ids.tolist()) for rows, part in unpadded(padded)]
        [([0], [[5, 6]]), ([1], [[7, 8, 9]])]
    """
    mask = batch.attention_mask
    if mask is None:
        yield torch.arange(len(batch)), batch
        return
    lengths = mask.sum(1)
    for length in lengths[lengths > 0].unique().tolist():
        rows = (lengths == length).nonzero()[:, 0]
        yield rows, Batch(batch.input_ids[rows][mask[rows].bool()].view(len(rows), length))


def joined(batches: Sequence[Batch], made: Iterator[Tensor]) -> Iterator[Tensor]:
    """Yield, per batch, what was made of the parts that `unpadded` cut it into, ``[B, T, ...]``; zeros at padding."""
    for batch in batches:
        whole: Tensor | None = None
        for rows, _ in unpadded(batch):
            part = next(made)
            mask = torch.ones_like(batch.input_ids) if batch.attention_mask is None else batch.attention_mask
            whole = part.new_zeros(*mask.shape, *part.shape[2:]) if whole is None else whole
            places = torch.zeros_like(mask, dtype=torch.bool)
            places[rows] = mask[rows].bool()
            whole[places.to(whole.device)] = part.flatten(0, 1)
        if whole is not None:
            yield whole

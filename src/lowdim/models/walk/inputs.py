"""What a causal LM is called with for a batch."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

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
    options: dict[str, Any] = {"use_cache": False}
    mask = batch.attention_mask
    if mask is not None:
        options |= {
            "attention_mask": mask.to(device),
            "position_ids": (mask.cumsum(1) - 1).clamp(min=0).to(device),
        }
    kept = {name: value for name, value in options.items() if name in accepted}
    return {"input_ids": batch.input_ids.to(device), **kept}

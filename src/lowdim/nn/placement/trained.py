"""What a placement costs a trained model before it goes on learning."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from lowdim.core.errors import LowdimError
from lowdim.nn.blocks import evaluating

if TYPE_CHECKING:
    from lowdim.nn.placement.base import Placement


@dataclass(frozen=True)
class Jump:
    """Mean loss per token of a model, in nats, before and after it got a placement."""

    before: float
    after: float


def jump(model: PreTrainedModel, placement: Placement, batches: Iterable[Tensor]) -> Jump:
    """Give a trained model a placement and measure how its loss changes by that alone.

    Args:
        model: changed as by ``placement.apply_(model)``, without the warning.
        placement: what it gets.
        batches: token ids, int64 [batch, length], without padding.

    Raises:
        LowdimError: there are no batches, or the placement is refused; nothing has been changed.
    """
    held = list(batches)
    before = _loss(model, held)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the model has been trained")
        placement.apply_(model)
    return Jump(before, _loss(model, held))


def _loss(model: PreTrainedModel, batches: list[Tensor]) -> float:
    total, tokens = 0.0, 0
    with torch.no_grad(), evaluating(model):
        for ids in batches:
            logits = model(input_ids=ids.to(model.device), use_cache=False).logits[:, :-1].flatten(0, 1).float()
            total += float(cross_entropy(logits, ids[:, 1:].flatten().to(logits.device), reduction="sum"))
            tokens += ids[:, 1:].numel()
    if not tokens:
        raise LowdimError("batches hold no token to predict. Give token ids, [batch, length], of two tokens or more")
    return total / tokens if math.isfinite(total) else math.nan

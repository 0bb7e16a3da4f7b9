"""What a model is trained for, and what is said of it on text that it was not trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lowdim.train.pretrain.sequences import IGNORED, Micro


class Goal(Protocol):
    """A loss, and sums over the validation text that a verdict is made of.

    Attributes:
        unit: what a batch's loss is a mean over, in the plural.
        width: numbers in the sums.
    """

    unit: str
    width: int

    def loss(self, model: nn.Module, micro: Any, device: torch.device) -> Tensor:
        """Return the mean loss of what counts in a micro-batch."""

    def sums(self, model: nn.Module, micro: Any, device: torch.device) -> Tensor:
        """Return what is added up over the validation text, fp64 ``[width]``."""

    def verdict(self, sums: Sequence[float]) -> dict[str, float]:
        """Return what the sums over all of it say; ``loss`` is among it."""


class NextToken:
    """The cross entropy of every token that counts, given those before it."""

    unit, width = "tokens", 2

    def loss(self, model: nn.Module, micro: Micro, device: torch.device) -> Tensor:
        """Return its mean over the tokens that count."""
        logits = model(input_ids=micro.ids.to(device, non_blocking=True)).logits
        return _cross_entropy(logits, micro.targets.to(device, non_blocking=True))

    def sums(self, model: nn.Module, micro: Micro, device: torch.device) -> Tensor:
        """Return its sum, and how many tokens that is."""
        logits = model(input_ids=micro.ids.to(device)).logits
        loss = _cross_entropy(logits, micro.targets.to(device))
        return torch.stack([loss.double() * micro.counted, loss.new_tensor(micro.counted).double()])

    def verdict(self, sums: Sequence[float]) -> dict[str, float]:
        """Return the mean of all tokens."""
        return {"loss": sums[0] / sums[1]}


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean of -log softmax(logits)[target] over the targets that count, in fp32."""
    return nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED)

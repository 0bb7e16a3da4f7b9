"""An objective and a sampler that only tests register."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from lowdim.core.settings import within
from lowdim.train.objectives.base import Drawn, Memory, Objective, Samples
from lowdim.train.samplers.base import Sampler


@dataclass(frozen=True)
class Focal(Objective):
    """Cross entropy times (1 - p)^gamma."""

    gamma: float = within(2.0, least=0)

    def loss(self, outputs: Any, batch: Drawn) -> Tensor:
        losses = torch.nn.functional.cross_entropy(outputs, batch.y, reduction="none")
        return (1 - torch.exp(-losses)) ** self.gamma * losses


@dataclass(frozen=True)
class Halves(Sampler):
    """Every other sample."""

    def size(self, samples: int, epoch: int, epochs: int) -> int:
        return samples // 2

    def order(self, samples: Samples, memory: Memory, epoch: int, epochs: int, draw: Generator) -> Tensor:
        return torch.arange(epoch % 2, len(samples), 2)[: len(samples) // 2]

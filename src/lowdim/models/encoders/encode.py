"""Encoders by name: features of samples, and an encoder with a head that is trained with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lowdim.core.random import derive_seed
from lowdim.data.classification import Kind
from lowdim.data.labelled.source import Source
from lowdim.models.encoders.efficientnet import efficientnet_lite0
from lowdim.models.encoders.minilm import minilm, tokenized

BATCH, LEAST = 64, 96  # samples that are encoded at once; pixels along a side that a picture is brought to


@dataclass(frozen=True)
class Encoder:
    """An encoder that is fetched when it is first used.

    Attributes:
        kind: of samples that it takes.
        network: makes it; its ``width`` says how many features there are.
        inputs: what it takes of samples.
    """

    kind: Kind
    network: Callable[[], Any]
    inputs: Callable[[Source], Tensor]


class Headed(nn.Module):
    """An encoder and a linear head.

    Args:
        encoder: maps samples to features [samples, width].
        width: of the features.
        classes: how many logits there are.
        seed: of the head's weights.
    """

    def __init__(self, encoder: nn.Module, width: int, classes: int, seed: int) -> None:
        super().__init__()
        self.encoder = encoder
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "net"))
            self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map samples to logits [samples, classes]."""
        logits: Tensor = self.head(self.encoder(x))
        return logits


def _pictures(source: Source) -> Tensor:
    """Return pictures as EfficientNet-Lite takes them, three channels of at least 96 pixels along a side."""
    assert isinstance(source.x, Tensor)
    x = source.x.float().expand(-1, 3, -1, -1)
    if min(x.shape[2:]) < LEAST:
        x = nn.functional.interpolate(x, size=(LEAST, LEAST), mode="bilinear", align_corners=False)
    return (x - 127) / 128


def _texts(source: Source) -> Tensor:
    return tokenized([str(text) for text in source.x])


ENCODERS: dict[str, Encoder] = {
    "minilm": Encoder("text", minilm, _texts),
    "efficientnet-lite0": Encoder("image", efficientnet_lite0, _pictures),
}


@torch.no_grad()
def features(encoder: nn.Module, x: Tensor, told: Callable[[int], None]) -> Tensor:
    """Return the features of all samples, fp32 [samples, width], each of mean 0 and deviation 1.

    Args:
        encoder: in evaluation mode.
        x: what it takes.
        told: called with the samples of each batch.
    """
    parts = []
    for part in x.split(BATCH):
        parts.append(encoder(part).float())
        told(len(part))
    found = torch.cat(parts)
    return (found - found.mean(0)) / found.std(0).clamp_min(1e-6)

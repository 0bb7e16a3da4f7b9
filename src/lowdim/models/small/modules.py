"""Modules that `torch.nn.Sequential` cannot spell."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn


def _convolution(inside: int, outside: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(inside, outside, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outside)]


class ResidualBlock(nn.Module):
    """Two convolutions and a shortcut around them: relu(f(x) + P x), P a 1x1 convolution of stride 2."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        first, second = _convolution(inside, outside, 2), _convolution(outside, outside)
        self.body = nn.Sequential(*first, nn.ReLU(), *second)
        self.shortcut = nn.Sequential(nn.Conv2d(inside, outside, 1, 2, bias=False), nn.BatchNorm2d(outside))

    def forward(self, x: Tensor) -> Tensor:
        """Map [examples, inside, height, width] to half the height and width."""
        return nn.functional.relu(self.body(x) + self.shortcut(x))


class Residual(nn.Module):
    """A convolution of stride 2, then residual blocks, then the mean over all places and a linear head."""

    def __init__(self, inside: int, channels: Sequence[int], classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_convolution(inside, channels[0], 2), nn.ReLU())
        self.blocks = nn.Sequential(*(ResidualBlock(a, b) for a, b in pairwise(channels)))
        self.head = nn.Linear(channels[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images [examples, inside, height, width] to logits [examples, classes]."""
        logits: Tensor = self.head(self.blocks(self.stem(x)).mean((2, 3)))
        return logits

"""Small networks and tickets by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lowdim.core.masks import Masks
from lowdim.core.random import generator
from lowdim.models.ticket import Ticket


class Tied(nn.Module):
    """An embedding that is also the head, around a transformer layer."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        return self.head(self.block(self.embed(tokens)))


def mlp():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def conv():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 5, 3, bias=False),
        nn.BatchNorm2d(5),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, 3),
    )


BUILDERS = {"mlp": mlp, "conv": conv, "tied": Tied}
INPUTS = {
    "mlp": lambda: torch.randn(7, 6, generator=generator(0, "x")),
    "conv": lambda: torch.randn(7, 2, 5, 5, generator=generator(0, "x")),
    "tied": lambda: torch.randint(0, 11, (3, 4), generator=generator(0, "x")),
}

every_kind = pytest.mark.parametrize("kind", list(BUILDERS))


def build(kind: str, seed: int = 0) -> nn.Module:
    """Return a model with random weights and random norm statistics."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = BUILDERS[kind]()
    for name, buffer in model.named_buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5, generator=generator(seed, "buffers", name))
        else:
            buffer.fill_(seed + 3)
    return model


def matrices(model: nn.Module) -> list[str]:
    """Return the names of all weights with two or more dimensions."""
    return [name for name, weight in model.named_parameters() if weight.ndim > 1]


def random_masks(model: nn.Module, seed: int = 0, kept: float = 0.5) -> dict[str, torch.Tensor]:
    """Keep exactly half (or another share) of each matrix."""
    masks = {}
    for name in matrices(model):
        weight = dict(model.named_parameters())[name]
        order = torch.randperm(weight.numel(), generator=generator(seed, "mask", name))
        mask = torch.zeros(weight.numel(), dtype=torch.bool)
        mask[order[: round(kept * weight.numel())]] = True
        masks[name] = mask.reshape(weight.shape)
    return masks


def random_ticket(kind: str, seed: int, *, kept: float = 0.5, mask_seed: int | None = None) -> Ticket:
    """Return a ticket of random weights."""
    model = build(kind, seed)
    return Ticket.of(model, random_masks(model, seed if mask_seed is None else mask_seed, kept))


def vector(*weights: float, mask: tuple[int, ...] | None = None) -> Ticket:
    """Return a ticket of one parameter ``w``, masked where it is 0 unless a mask is given."""
    w = torch.tensor(weights)
    kept = w != 0 if mask is None else torch.tensor(mask, dtype=torch.bool)
    return Ticket({"w": w}, Masks.from_dict({"w": kept}))


class Vector(nn.Module):
    """One parameter, for losses that are written down."""

    def __init__(self, *weights: float):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(weights))

"""What holds for every registered probe: it reads, and reads the same twice, from any mask that a layer can have."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from lowdim.core import registry
from lowdim.core.masks import Masks

MASKS = {
    "random": lambda shape: torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape))) < 0.5,
    "full": lambda shape: torch.ones(shape, dtype=torch.bool),
    "empty": lambda shape: torch.zeros(shape, dtype=torch.bool),
    "one": lambda shape: torch.arange(torch.Size(shape).numel()).view(shape) == 0,
}
WIDTHS = {"usual": (6, 8, 5), "one neuron": (6, 1, 1)}


def network(widths: tuple[int, ...]) -> nn.Sequential:
    first, hidden, last = widths
    return nn.Sequential(
        nn.Conv2d(first, hidden, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * hidden, last),
        nn.ReLU(),
    )


def masks_of(model: nn.Module, kind: str) -> Masks:
    weights = {name: p for name, p in model.named_parameters() if p.dim() > 1}
    return Masks.from_dict({name: MASKS[kind](tuple(p.shape)) for name, p in weights.items()})


def read(name: str, model: nn.Module, masks: Masks) -> Any:
    """Use a probe as its kind is used."""
    probe = registry.find("probe", name).load()()
    x = torch.ones(1, model[0].in_channels, 2, 2)
    if name == "nnstd":
        return probe.distance(masks, masks_of(model, "random"))
    if name == "ramanujan":
        return probe.measure(masks, dict(model.named_parameters()))
    if name == "full-spectrum":
        return probe.coordinate(masks, dict(model.named_parameters()))
    if name == "paths":
        return probe.measure(model, masks, x)
    if name == "dormant":
        return probe.measure(model, [x])
    assert name == "cost", "a new probe needs a line here"
    return probe.measure(model, x, [(0, {layer: masks.kept(layer) for layer in masks})], 3)


@pytest.mark.parametrize("name", registry.names("probe"))
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("widths", WIDTHS.values(), ids=WIDTHS)
def test_probes_read_any_mask_and_change_nothing(name: str, kind: str, widths: tuple[int, ...]) -> None:
    model = network(widths)
    masks = masks_of(model, kind)
    digest, state = masks.hash(), {key: value.clone() for key, value in model.state_dict().items()}
    first, second = read(name, model, masks), read(name, model, masks)
    assert repr(first) == repr(second)
    assert masks.hash() == digest
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert model.training


@pytest.mark.parametrize("name", registry.names("probe"))
def test_probes_are_frozen(name: str) -> None:
    probe = registry.find("probe", name).load()()
    assert probe == type(probe)()
    assert dataclasses.is_dataclass(probe)
    assert type(probe).__dataclass_params__.frozen

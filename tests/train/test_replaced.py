"""An optimizer that is replaced while riders are on another: every rider says so before a weight is stepped."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from tests.nn.placement.decoders import decoder
from tests.train.small import Counter
from torch import Tensor, nn

import lowdim.train.dynamic.chase_channels
import lowdim.train.dynamic.correlation
import lowdim.train.dynamic.momentum
from lowdim.core.errors import LowdimError
from lowdim.core.quantize import Grid
from lowdim.nn.placement import ProRes
from lowdim.train import LISA, STEP, GaLore, KeepZeros, LayerSampling, RigL, SparseFromScratch, SparseTraining
from lowdim.train.nm.adaptive import AdaptiveMasks
from lowdim.train.nm.ast import AST
from lowdim.train.nm.fst import FST
from lowdim.train.nm.riders import FixedMasks, MaskRider
from lowdim.train.nm.rounded import RoundedWeight, Rounding
from lowdim.train.nm.s_ste import SSTE
from lowdim.train.nm.sr_ste import SRSTE
from lowdim.train.ride import Rider
from lowdim.train.riders.alphadecay import AlphaDecay
from lowdim.train.riders.prores import ResidualWarmup
from lowdim.train.riders.spectral import SpectralDecay

pytestmark = pytest.mark.filterwarnings("ignore:.*weights (stay dense|were zero already)")
IDS = torch.arange(16).view(2, 8)
NAME = "model.layers.1.mlp.gate_proj"
Make = Callable[[Any, torch.optim.Optimizer], Rider]


def layer(model: Any) -> Any:
    return model.get_submodule(NAME)


def halved(model: Any) -> Tensor:
    """Return a 2:4 mask."""
    return (torch.arange(layer(model).weight.numel()) % 4 < 2).view(layer(model).weight.shape)


def pruned(model: Any) -> Any:
    with torch.no_grad():
        layer(model).weight.mul_(halved(model))
    return model


def scratch(rule: Any) -> Make:
    return lambda model, optimizer: SparseFromScratch({NAME: layer(model)}, rule, optimizer, total_steps=20)


def adaptive(model: Any, optimizer: torch.optim.Optimizer) -> Rider:
    weights, masks = {NAME: layer(model).weight}, {NAME: halved(model)}
    return AdaptiveMasks(weights, masks, "2:4", AST(every=2), optimizer, total_steps=20)


MAKE: dict[str, Make] = {
    "SparseTraining": lambda m, o: SparseTraining(
        m, o, sparsity=0.5, method=RigL(every=2), total_steps=20, include=[NAME]
    ),
    "KeepZeros": lambda m, o: KeepZeros(pruned(m), o),
    "SpectralDecay": lambda m, o: SpectralDecay(m, o, AlphaDecay(least=4)),
    "ResidualWarmup": ResidualWarmup,
    "LayerSampling": lambda m, o: LayerSampling(m, o, LISA(active=2)),
    "Rounding": lambda m, o: Rounding({layer(m).weight: RoundedWeight(None, Grid(8), 2.0**-126)}, o),
    "FixedMasks": lambda m, o: FixedMasks({layer(m).weight: halved(m)}, o),
    "AdaptiveMasks": adaptive,
    "SparseFromScratch": scratch(FST()),
    "SparseFromScratch/s-ste": scratch(SSTE()),
    "SparseFromScratch/sr-ste": scratch(SRSTE()),
    "SparseFromScratch/step": scratch(STEP()),
    "Counter": lambda m, o: Counter(m, o, 20),
}
OBSERVERS = {
    lowdim.train.dynamic.chase_channels.Removal,
    lowdim.train.dynamic.correlation.Passes,
    lowdim.train.dynamic.momentum.DenseMomentum,
}
"""Riders of a training that has the weights."""


def kinds(base: type[Rider] = Rider) -> Iterator[type[Rider]]:
    """Yield every class of riders that can be made."""
    for kind in base.__subclasses__():
        if not inspect.isabstract(kind):
            yield kind
        yield from kinds(kind)


def net() -> Any:
    model = decoder("llama")
    ProRes(steps=4).apply_(model)
    return model


def adamw(model: nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)


def backward(model: Any) -> None:
    model(IDS, labels=IDS, use_cache=False).loss.backward()


def step(model: Any, optimizer: torch.optim.Optimizer, rider: Rider) -> None:
    for weight, shown in rider.projections().items() if isinstance(rider, MaskRider | Rounding) else ():
        shown(weight.detach())
    backward(model)
    optimizer.step()
    optimizer.zero_grad()


def test_every_rider_is_here() -> None:
    ours = {kind for kind in kinds() if kind.__module__.startswith("lowdim.")}
    assert {kind.__name__ for kind in ours - OBSERVERS} == {n.partition("/")[0] for n in MAKE} - {"Counter"}


GOES_ON = {"ResidualWarmup": 1}
"""Steps after one step that a rider made anew has behind it: the model's shares say where the ramp is."""


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("name", MAKE)
def test_another_optimizer_is_refused_until_the_rider_gets_off(name: str, closed: bool) -> None:
    model = net()
    optimizer = adamw(model)
    rider = MAKE[name](model, optimizer)
    step(model, optimizer, rider)
    assert rider.step == 1
    new = torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=0.1)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    if not closed:
        backward(model)
    kind = name.partition("/")[0]
    with pytest.raises(LowdimError, match=rf"this AdamW would step .*, but {kind} rides .* remove\(\) on that {kind}"):
        new.step((lambda: backward(model)) if closed else None)
    assert all(torch.equal(before[n], p) for n, p in model.named_parameters())
    other = nn.Linear(2, 2)
    apart = adamw(other)
    other(torch.ones(1, 2)).sum().backward()
    apart.step()
    rider.remove()
    new.zero_grad()
    again = MAKE[name](model, new)
    step(model, new, again)
    assert (rider.step, again.step) == (1, 1 + GOES_ON.get(name, 0))


@pytest.mark.parametrize("name", MAKE)
def test_one_made_again_over_the_same_optimizer_acts(name: str) -> None:
    model = net()
    optimizer = adamw(model)
    first = MAKE[name](model, optimizer)
    step(model, optimizer, first)
    first.remove()
    again = MAKE[name](model, optimizer)
    step(model, optimizer, again)
    assert (first.step, again.step) == (1, 1 + GOES_ON.get(name, 0))


def test_one_that_steps_other_weights_alone_may_step() -> None:
    model = net()
    rider = MAKE["FixedMasks"](model, adamw(model))
    new = adamw(model)
    backward(model)
    layer(model).weight.grad = None
    new.step()
    assert rider.step == 0


def test_what_an_optimizer_steps_in_the_backward_pass_is_its_own() -> None:
    model = net()
    optimizer = GaLore(rank=4, layerwise=True).build(model)
    rider = MAKE["LayerSampling"](model, optimizer)
    for _ in range(2):
        step(model, optimizer, rider)
    assert rider.step == 2

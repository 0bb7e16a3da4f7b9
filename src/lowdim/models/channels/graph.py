"""Which output channels of a network can be taken out, found by what its layers really do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from lowdim.core.errors import LowdimError
from lowdim.core.random import generator
from lowdim.models.channels.cut import Producer, Seen, clear, cut, each_read
from lowdim.models.channels.kinds import Carrier, Mixer, call, duplicate, kind_of, single, tensors
from lowdim.models.channels.probe import OUTPUT, Marks, Probe, Site, codes, own_tensors

TOLERANCE = 1e-3  # of the largest output, between a model that is cut and the same with zeros


@dataclass(frozen=True)
class Channels:
    """What is known of the output channels of a network.

    Attributes:
        producers: the layers whose channels can each be taken out.
        whole: why each other linear or convolutional layer stays whole, by name.
    """

    producers: tuple[Producer, ...]
    whole: Mapping[str, str]

    def __str__(self) -> str:
        """Return a table of the layers."""
        lines = []
        for p in self.producers:
            parts = ", ".join(seen.name for seen in (*p.carriers, *p.readers))
            lines.append(f"{p.name:32} {p.channels:>6} channels, with their parts in {parts}")
        return "\n".join([*lines, *(f"{name:32} stays whole: {why}" for name, why in self.whole.items())])


def find_channels(model: nn.Module, example: Any) -> Channels:
    """Find the layers whose output channels can be taken out one by one, and all that belongs to each channel.

    Every channel is followed through a real forward pass to the layers that read it, so that any code between
    layers is understood by what it does. A layer stays whole if its channels are added to another layer's (a residual
    sum), are normalised together, are part of the output, or meet parameters of an unknown kind of layer; and
    if the model, with channels cut out, fails or gives another result than with the weights that read them zeroed,
    as where its code holds the number of channels.

    Args:
        model: stays as it is; a copy is run, in evaluation mode. Its weights may hold zeros.
        example: an input of the usual shape: one tensor, a tuple of arguments, or a mapping of keyword arguments.

    Raises:
        LowdimError: the model gives NaN on the example, chooses its way by values of activations, or is sharded.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
        >>> print(find_channels(net, torch.ones(1, 1, 4, 4)))
        0                                     4 channels, with their parts in 1, 4
        4                                stays whole: its channels are part of the model's output
    """
    if any(isinstance(m, FSDPModule) for m in model.modules()):
        raise LowdimError("channels of a sharded model cannot be found; find them before fully_shard")
    with quiet(model):
        found = _follow(model, example)
        fit = {p.name for p in _try(model, example, found.producers)}
    whole = {
        p.name: "the model does not work the same with fewer channels" for p in found.producers if p.name not in fit
    }
    return Channels(tuple(p for p in found.producers if p.name in fit), {**found.whole, **whole})


@contextmanager
def quiet(model: nn.Module) -> Iterator[None]:
    """Leave the global random generators as they are, whatever the model draws."""
    devices = {p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(devices)):
        yield


def _follow(model: nn.Module, example: Any) -> Channels:
    probe = Probe(duplicate(model), example)
    whole = _unfit(probe)
    names = [n for n, k in probe.kinds.items() if isinstance(k, Mixer) and n not in whole]
    numbers = codes(probe, names) if names else {}
    reach = {n: probe.mark({n: torch.ones(probe.channels(n), dtype=torch.bool)}) for n in names}
    strange = {n: probe.mark_own(n) for n in _strangers(probe)}
    producers, first = [], 0
    for name in names:
        size = probe.channels(name)
        why = _reason(name, reach, strange, numbers, range(first, first + size))
        if why:
            whole[name] = why
        else:
            producers.append(_producer(probe, name, size, reach[name], numbers, first))
        first += size
    return Channels(tuple(producers), whole)


def _unfit(probe: Probe) -> dict[str, str]:
    """Return the layers that cannot be followed at all, with the reason."""
    uses = Counter(id(p) for m in probe.model.modules() for p in m._parameters.values() if p is not None)
    called = {name for name, _ in probe.clean}
    whole = {}
    for name, module in probe.model.named_modules():
        weight = module._parameters.get("weight")
        if kind_of(module) is None and isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)):
            whole[name] = "its weight is cut into groups or computed from others"
        elif isinstance(probe.kinds.get(name), Mixer):
            if name not in called:
                whole[name] = "it is not called on the example"
            elif uses[id(weight)] > 1:
                whole[name] = "its weight is tied"
    return whole


def _strangers(probe: Probe) -> list[str]:
    """Return the layers that hold something themselves and are of no known kind."""
    return [n for n, m in probe.model.named_modules() if n not in probe.kinds and own_tensors(m)]


def _reason(
    name: str, reach: Mapping[str, Marks], strange: Mapping[str, Marks], numbers: Mapping[Site, Tensor], mine: range
) -> str:
    """Return why a layer must stay whole; empty if its channels are read one by one."""
    sites = {site: marked for site, marked in reach[name].items() if bool(marked.any())}
    if OUTPUT in sites:
        return "its channels are part of the model's output"
    if not sites:
        return "no layer is seen to read its channels"
    for other, marks in strange.items():
        if any(bool((marks[site] & marked).any()) for site, marked in sites.items()):
            return f"its channels meet what {other or 'the model'} holds, of an unknown kind"
    for site, marked in sites.items():
        seen = numbers[site][marked]
        if bool(((seen < mine.start) | (seen >= mine.stop)).any()):
            return _mixing(name, site, marked, reach)
    return ""


def _mixing(name: str, site: Site, marked: Tensor, reach: Mapping[str, Marks]) -> str:
    others = [n for n, marks in reach.items() if n != name and bool((marks[site] & marked).any())]
    if others:
        return f"its channels and those of {', '.join(others)} are joined before {site[0]} reads them"
    return f"its channels are mixed before {site[0]} reads them"


def _producer(probe: Probe, name: str, size: int, reach: Marks, numbers: Mapping[Site, Tensor], first: int) -> Producer:
    seen: dict[str, Seen] = {}
    for site, marked in reach.items():
        if bool(marked.any()):
            source = torch.where(marked, numbers[site] - first, -1)
            if site[0] in seen:  # called more than once: its inputs must be the same channels each time
                source = torch.where(source < 0, seen[site[0]].source, source)
            seen[site[0]] = Seen(site[0], source)
    carriers = tuple(s for s in seen.values() if isinstance(probe.kinds[s.name], Carrier))
    readers = tuple(s for s in seen.values() if isinstance(probe.kinds[s.name], Mixer))
    return Producer(name, size, carriers, readers)


# ---------------------------------------------------------------- does it work?


def _try(model: nn.Module, example: Any, producers: Sequence[Producer]) -> list[Producer]:
    """Return the producers that the model can do with fewer channels of."""
    fit = [p for p in producers if p.channels > 1 and p.readers]
    if not fit or _works(model, example, fit):
        return fit
    if len(fit) == 1:
        return []
    half = len(fit) // 2
    return _try(model, example, fit[:half]) + _try(model, example, fit[half:])


def _works(model: nn.Module, example: Any, producers: Sequence[Producer]) -> bool:
    """Tell whether a model that is cut gives what it gives with zeros: without the first channels, and without half."""
    first = {p.name: torch.arange(p.channels) == 0 for p in producers}
    return all(_works_without(model, example, producers, r) for r in (first, {p.name: _half(p) for p in producers}))


def _half(producer: Producer) -> Tensor:
    order = torch.randperm(producer.channels, generator=generator(0, "channels", producer.name))
    return order < producer.channels // 2


def _works_without(
    model: nn.Module, example: Any, producers: Sequence[Producer], removed: Mapping[str, Tensor]
) -> bool:
    masked, smaller = duplicate(model), duplicate(model)
    for producer in producers:
        each_read(masked, producer, removed[producer.name], clear)
    try:
        cut(smaller, producers, removed)
        return difference(masked, smaller, example) <= TOLERANCE
    except Exception:  # whatever the model's own code raises when a size is not what it expects
        return False


def difference(model: nn.Module, other: nn.Module, example: Any) -> float:
    """Return how far two models' outputs are apart, as a share of the largest; infinite if shapes differ.

    Copies that are in half precision are turned to single precision.
    """
    (one, x), (two, _) = single(model, example), single(other, example)
    pairs = list(zip(tensors(call(one, x)), tensors(call(two, x)), strict=True))
    if any(a.shape != b.shape for a, b in pairs):
        return float("inf")
    scale = max((float(a.abs().max()) for a, _ in pairs if a.numel()), default=0.0)
    apart = max((float((a.double() - b.double()).abs().max()) for a, b in pairs if a.numel()), default=0.0)
    return apart / scale if scale else apart

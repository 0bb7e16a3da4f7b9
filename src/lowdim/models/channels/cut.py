"""Cut channels out of a model in place: every tensor that holds them becomes smaller."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lowdim.models.channels.kinds import Carrier, Mixer, kind_of, per_channel, replace_tensor, resize, size_names


@dataclass(frozen=True)
class Seen:
    """A layer that sees channels of a producer.

    Attributes:
        name: of the layer.
        source: int64 [its input channels], the producer's channel that each of them is; -1 where it is none.
    """

    name: str
    source: Tensor

    def select(self, channels: Tensor) -> Tensor:
        """Return which input channels are among a producer's ``channels`` (bool), bool [input channels]."""
        found = torch.zeros(len(self.source), dtype=torch.bool)
        mine = self.source >= 0
        found[mine] = channels[self.source[mine]]
        return found


@dataclass(frozen=True)
class Producer:
    """A layer whose output channels can each be taken out, with all that belongs to them.

    Attributes:
        name: of the layer.
        channels: how many it has.
        carriers: layers that hand the channels on one by one, such as batch norms.
        readers: layers that mix them.
    """

    name: str
    channels: int
    carriers: tuple[Seen, ...]
    readers: tuple[Seen, ...]


Touch = Callable[[nn.Module, str, int, Tensor], None]


def each_part(model: nn.Module, producer: Producer, channels: Tensor, touch: Touch) -> None:
    """Call ``touch(layer, tensor's name, axis, where)`` for every tensor that holds something of some channels.

    Args:
        model: which the producer is of.
        producer: the layer.
        channels: bool [channels].
        touch: told the layer, the name of its parameter or buffer, the axis of channels in it, and which of the
            axis belong to ``channels``, bool [size of the axis].
    """
    module = model.get_submodule(producer.name)
    kind = kind_of(module)
    assert isinstance(kind, Mixer)
    touch(module, "weight", kind.outputs, channels)
    if module._parameters["bias"] is not None:
        touch(module, "bias", 0, channels)
    for carrier in producer.carriers:
        module = model.get_submodule(carrier.name)
        for name in per_channel(module):
            touch(module, name, 0, carrier.select(channels))
    each_read(model, producer, channels, touch)


def each_read(model: nn.Module, producer: Producer, channels: Tensor, touch: Touch) -> None:
    """Do as ``each_part`` for the weights alone that multiply the channels."""
    for reader in producer.readers:
        module = model.get_submodule(reader.name)
        kind = kind_of(module)
        assert isinstance(kind, Mixer)
        touch(module, "weight", kind.inputs, reader.select(channels))


def along(where: Tensor, axis: int, like: Tensor) -> Tensor:
    """Return marks of an axis as a bool tensor that broadcasts with ``like``."""
    return where.to(like.device).reshape(*[1] * axis, -1, *[1] * (like.ndim - axis - 1))


def clear(module: nn.Module, name: str, axis: int, where: Tensor) -> None:
    """Zero what ``each_part`` names, parameters alone."""
    parameter = module._parameters.get(name)
    if parameter is not None:
        with torch.no_grad():
            parameter.masked_fill_(along(where, axis, parameter), 0.0)


def cut(
    model: nn.Module, producers: Iterable[Producer], removed: Mapping[str, Tensor]
) -> dict[tuple[str, int], Tensor]:
    """Take channels out of a model, in place.

    Args:
        model: changed; none of its layers may be in use elsewhere.
        producers: found in it before.
        removed: bool [channels] by the producer's name.

    Returns:
        What stayed of each parameter and buffer that was cut: bool by its name and the axis.
    """
    names = {id(module): name for name, module in model.named_modules()}
    stays: dict[tuple[str, str, int], Tensor] = {}

    def note(module: nn.Module, name: str, axis: int, where: Tensor) -> None:
        key = (names[id(module)], name, axis)
        stays[key] = stays.get(key, torch.ones_like(where)) & ~where

    for producer in producers:
        if producer.name not in removed:
            continue
        each_part(model, producer, removed[producer.name], note)
        for carrier in producer.carriers:
            note(model.get_submodule(carrier.name), "", 0, carrier.select(removed[producer.name]))
    for (owner, name, axis), stay in stays.items():
        _cut_one(model.get_submodule(owner), name, axis, stay)
    return {(f"{owner}.{name}".lstrip("."), axis): stay for (owner, name, axis), stay in stays.items() if name}


def _cut_one(module: nn.Module, name: str, axis: int, stay: Tensor) -> None:
    kind, size = kind_of(module), int(stay.sum())
    if name:
        old = {**module._parameters, **module._buffers}[name]
        assert old is not None
        replace_tensor(module, name, old.index_select(axis, stay.nonzero().flatten().to(old.device)))
    if isinstance(kind, Mixer):
        resize(module, size_names(kind, "outputs" if name == "bias" or axis == kind.outputs else "inputs"), size)
    elif isinstance(kind, Carrier) and not name:
        resize(module, kind.sizes, size)

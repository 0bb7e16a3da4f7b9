"""The smaller network that is left when channels that nobody reads are cut out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from lowdim.core.errors import LowdimError, RecipeError, suggest
from lowdim.core.masks import Masks
from lowdim.models.channels.cut import Producer, along, clear, cut, each_part, each_read
from lowdim.models.channels.graph import TOLERANCE, Channels, difference, find_channels, quiet
from lowdim.models.channels.kinds import Mixer, call, duplicate, kind_of, plain


@dataclass(frozen=True)
class Sliced:
    """A network whose removed channels are gone.

    Attributes:
        model: a new one, of ordinary dense layers; nothing is shared with the old.
        masks: what was given, cut alike.
        removed: the channels that were cut, bool [channels] by layer; with it, a moving average of the model can be
            sliced alike.
        channels: for each layer whose channels can be cut, how many it had and how many it has.
        parameters: of the model before and after.
        flops: multiplications and additions of linear and convolutional layers, held dense, in one forward pass on the
            example, before and after.
        whole: why every other layer stayed as it was.
        difference: between the outputs on the example, as a share of the largest.
    """

    model: nn.Module
    masks: Masks | None
    removed: Mapping[str, Tensor]
    channels: Mapping[str, tuple[int, int]]
    parameters: tuple[int, int]
    flops: tuple[int, int]
    whole: Mapping[str, str]
    difference: float

    def __str__(self) -> str:
        """Return the report as a table."""
        rows = [f"{name:32} {old:>6} -> {new:>6} channels" for name, (old, new) in self.channels.items()]
        rows += [f"{name:32} stays whole: {why}" for name, why in self.whole.items()]
        for what, (old, new) in (("parameters", self.parameters), ("FLOPs", self.flops)):
            rows.append(f"{what:12} {old:>12,} -> {new:>12,} ({new / max(1, old):.1%})")
        return "\n".join(rows)


def slice_channels(
    model: nn.Module,
    example: Any,
    *,
    masks: Mapping[str, Tensor] | None = None,
    removed: Mapping[str, Tensor] | None = None,
) -> Sliced:
    """Cut channels out of a network: smaller linear, convolutional and norm layers with the same output.

    Without ``removed``, those channels go that no layer reads, every weight that multiplies them being zero: so are
    the channels that `Chase` removed. One channel of each layer always stays.

    Paper: "Dynamic Sparsity Is Channel-Level Sparsity Learner", NeurIPS 2023, arXiv 2305.19454.

    Args:
        model: stays as it is.
        example: an input of the usual shape: one tensor, a tuple of arguments, or a mapping of keyword arguments.
        masks: of the weights, bool by parameter name. A weight that a mask keeps counts as read, even if it is zero
            now; the masks are cut with the weights, so that training can go on.
        removed: bool [channels] by layer name: cut these, as if no layer read them.

    Returns:
        The new model, in the mode (training or evaluation) of the old, with a report.

    Raises:
        RecipeError: ``removed`` names a layer that cannot be cut, all channels of one, or a mask does not fit.
        LowdimError: the new model does not give what the old one gives.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> _ = net[2].weight.data[:, 3:].zero_()
        >>> sliced = slice_channels(net, torch.ones(1, 4))
        >>> sliced.channels, sliced.parameters
        ({'0': (8, 3)}, (58, 23))
    """
    known = find_channels(model, example)
    if masks is not None:
        _check_masks(model, masks)
    gone = unread(model, known, masks or {}) if removed is None else _asked(known, removed)
    whole, smaller = duplicate(model), duplicate(model)
    for producer in known.producers:
        if producer.name in gone:
            each_read(whole, producer, gone[producer.name], clear)
    stays = cut(smaller, known.producers, gone)
    with quiet(model):
        flops = (_flops(whole, example), _flops(smaller, example))
        apart = difference(whole, duplicate(smaller), example)
    if not apart <= TOLERANCE:
        raise LowdimError(
            f"the sliced model's output differs from the masked one's by {apart:.2g} of the largest: the model "
            "counts on sizes that were cut. Exclude the layers, or leave their channels in"
        )
    smaller.train(model.training)
    counts = {
        p.name: (p.channels, p.channels - int(gone[p.name].sum()) if p.name in gone else p.channels)
        for p in known.producers
    }
    cut_masks = None if masks is None else _cut_masks(masks, stays)
    sizes = (_size(model), _size(smaller))
    return Sliced(smaller, cut_masks, gone, counts, sizes, flops, known.whole, apart)


def unread(model: nn.Module, known: Channels, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the channels that no layer reads, bool [channels] by layer; of each layer, one channel stays.

    A channel that only unread channels read is unread too.

    Args:
        model: with its weights.
        known: its channels.
        masks: bool by parameter name; what they keep counts as read.
    """
    model = plain(model)
    used = _Used(model, masks)
    gone = {p.name: torch.zeros(p.channels, dtype=torch.bool) for p in known.producers}
    while True:
        changed = False
        for producer in known.producers:
            idle = used.idle(producer)
            if bool(idle.all()):
                idle[0] = False
            if not torch.equal(idle, gone[producer.name]):
                gone[producer.name], changed = idle, True
                each_part(model, producer, idle, used.forget)
        if not changed:
            return {name: channels for name, channels in gone.items() if bool(channels.any())}


class _Used:
    """Which weights of a model are in use, without a change to the model."""

    def __init__(self, model: nn.Module, masks: Mapping[str, Tensor]) -> None:
        self._model = model
        self._marks: dict[int, Tensor] = {}
        for name, p in model.named_parameters():
            self._marks[id(p)] = masks[name].clone() if name in masks else p.detach() != 0

    def forget(self, module: nn.Module, name: str, axis: int, where: Tensor) -> None:
        """Mark channels as not in use."""
        parameter = module._parameters.get(name)
        if parameter is not None:
            marks = self._marks[id(parameter)]
            marks &= ~along(where, axis, marks)

    def idle(self, producer: Producer) -> Tensor:
        """Return the channels of which no weight in use is multiplied, bool [channels]."""
        read = torch.zeros(producer.channels, dtype=torch.bool)

        def look(module: nn.Module, name: str, axis: int, where: Tensor) -> None:
            parameter = module._parameters[name]
            assert parameter is not None
            marks = self._marks[id(parameter)]
            columns = marks.movedim(axis, 0).reshape(marks.shape[axis], -1).any(1).cpu()
            seen = next(r for r in producer.readers if self._model.get_submodule(r.name) is module)
            mine = seen.source >= 0
            read[seen.source[mine & columns]] = True

        each_read(self._model, producer, torch.ones_like(read), look)
        return ~read


def _asked(known: Channels, removed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    sizes = {p.name: p.channels for p in known.producers}
    gone = {}
    for name, channels in removed.items():
        if name not in sizes:
            why = known.whole.get(name)
            raise RecipeError(
                f"removed names {name!r}, which "
                + (f"stays whole: {why}" if why else f"cannot be cut. {suggest(name, sizes)}")
            )
        channels = torch.as_tensor(channels).cpu()
        if channels.dtype != torch.bool or channels.shape != (sizes[name],) or bool(channels.all()):
            raise RecipeError(
                f"removed[{name!r}] must be bool [{sizes[name]}] with at least one False; got {channels.dtype} "
                f"{list(channels.shape)} with {int((~channels.bool()).sum())} False"
            )
        gone[name] = channels
    return gone


def _check_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    shapes = {name: p.shape for name, p in plain(model).named_parameters()}
    for name in masks:
        if name not in shapes:
            raise RecipeError(f"masks names {name!r}, which the model lacks. {suggest(name, shapes)}")
        if masks[name].shape != shapes[name]:
            raise RecipeError(
                f"the mask of {name} has shape {list(masks[name].shape)}, the weight {list(shapes[name])}"
            )


def _cut_masks(masks: Mapping[str, Tensor], stays: Mapping[tuple[str, int], Tensor]) -> Masks:
    made = {name: masks[name] for name in masks}
    for (name, axis), stay in stays.items():
        if name in made:
            made[name] = made[name].index_select(axis, stay.nonzero().flatten().to(made[name].device))
    return Masks.from_dict(made)


def _size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _flops(model: nn.Module, example: Any) -> int:
    """Count two operations for every weight that is multiplied, of linear and convolutional layers."""
    counts: list[int] = []

    def count(module: Any, args: tuple[Any, ...], output: Tensor) -> None:
        spread = args[0] if isinstance(module, _ConvTransposeNd) else output  # what each weight is used once for
        kind = kind_of(module)
        axis = kind.outputs if isinstance(kind, Mixer) and spread is output else 0
        counts.append(2 * spread.numel() * module.weight.numel() // module.weight.shape[axis])

    found = [m for m in model.modules() if isinstance(kind_of(m), Mixer) or isinstance(m, _ConvNd)]
    handles = [m.register_forward_hook(count) for m in found]
    call(model, example)
    for handle in handles:
        handle.remove()
    return sum(counts)

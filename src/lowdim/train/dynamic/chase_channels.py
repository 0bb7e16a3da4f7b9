"""Channels that are removed while a network trains, and stay removed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lowdim.core.errors import LowdimError, RecipeError
from lowdim.core.transition import drop_lowest, member, union
from lowdim.models.channels.cut import Producer, along, each_part
from lowdim.models.channels.graph import Channels, find_channels
from lowdim.models.channels.kinds import Mixer, kind_of, plain
from lowdim.train.ride import Observer, Ride
from lowdim.train.sparse.layer import SparseLayer
from lowdim.train.sparse.state import per_weight


class Removal(Observer):
    """The filter mask: which channels are removed, and zeros in all that belongs to them.

    The channels of the network are found in its first forward pass. Once a channel is removed, its filter and bias, its
    entries in norms, and the weights that multiply it stay zero, in dense layers too: their gradient is cleared as soon
    as it arrives, their weight after every optimizer step.

    Args:
        model: in training.
        optimizer: that trains it.
        layers: its sparse weights; channels of these alone are removed.

    Raises:
        LowdimError: the model is sharded.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, layers: Sequence[SparseLayer]) -> None:
        self._model, self._optimizer = plain(model), optimizer
        self._sparse = {id(layer.parameter): layer for layer in layers}
        self._known: Channels | None = None
        self.removed: dict[str, Tensor] = {}
        self._dead: dict[int, tuple[nn.Parameter, Tensor]] = {}
        self._gradients: list[Any] = []
        self._ride = Ride.board(optimizer, self)
        self._first = model.register_forward_pre_hook(torch.compiler.disable(self._look), with_kwargs=True)

    # ---------------------------------------------------------------- what belongs to what

    def _look(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Find the channels from the inputs of the model's first call."""
        self._first.remove()
        if self._known is None:
            self.find(_few(args, kwargs))

    def find(self, example: Any) -> None:
        """Find the channels.

        Raises:
            RecipeError: no sparse layer has channels that can be removed.
        """
        self._known = find_channels(self._model, example)
        if not self.producers:
            raise RecipeError(
                "Chase finds no sparse layer whose channels can be removed; use channels=0.0, or another method:\n"
                f"{self._known}"
            )
        self._mark()

    @property
    def producers(self) -> dict[str, tuple[Producer, SparseLayer]]:
        """The layers whose channels may go, by name."""
        if self._known is None:
            raise LowdimError(
                "Chase has not seen a forward pass, in which it finds the channels. Train by calling the very model "
                "that SparseTraining was given"
            )
        found = {}
        for producer in self._known.producers:
            weight = self._model.get_submodule(producer.name)._parameters["weight"]
            if id(weight) in self._sparse:
                found[producer.name] = producer, self._sparse[id(weight)]
        return found

    def _mark(self) -> None:
        """Work out every parameter's removed entries."""
        self._dead = {}
        for name, (producer, _) in self.producers.items():
            if name in self.removed:
                each_part(self._model, producer, self.removed[name], self._note)
        for handle in self._gradients:
            handle.remove()
        self._gradients = [p.register_post_accumulate_grad_hook(self._clear) for p, _ in self._dense()]

    def _note(self, module: nn.Module, name: str, axis: int, where: Tensor) -> None:
        parameter = module._parameters.get(name)
        if parameter is not None:
            _, dead = self._dead.get(id(parameter), (parameter, torch.zeros_like(parameter, dtype=torch.bool)))
            self._dead[id(parameter)] = parameter, dead | along(where, axis, parameter)

    def _dense(self) -> list[tuple[nn.Parameter, Tensor]]:
        return [pair for key, pair in self._dead.items() if key not in self._sparse]

    def excluded(self, layer: SparseLayer) -> Tensor:
        """Return the weights of a layer that belong to removed channels, int64, ascending."""
        device = layer.positions().device
        if id(layer.parameter) not in self._dead:
            return torch.empty(0, dtype=torch.int64, device=device)
        return self._dead[id(layer.parameter)][1].flatten().nonzero().flatten().to(device)

    # ---------------------------------------------------------------- what goes

    def choose(self, share: float, final: float, beta: float, active: bool, counted: str = "") -> dict[str, Tensor]:
        """Return the channels to remove now, bool [channels] by layer.

        They are those of the lowest score, of all layers together, that are needed for round(share * channels) removed
        in all; a layer keeps ceil(beta * (1 - final) * channels) of its own, and at least one.

        Args:
            share: of all channels, removed by now.
            final: the same at the end of the run.
            beta: of what layers would keep on average, the part that each does keep.
            active: score by the mean |w| of the active weights, else of all.
            counted: "connection" or "kernel": score by the share of these that are not zero instead.
        """
        names, places, scores, total, gone = [], [], [], 0, 0
        for name, (producer, layer) in self.producers.items():
            axis = self._axis(producer)
            score = filter_shares(layer, axis, counted == "kernel") if counted else filter_means(layer, axis, active)
            present = (~self.removed.get(name, torch.zeros(producer.channels, dtype=torch.bool))).nonzero().flatten()
            room = len(present) - max(1, math.ceil(beta * (1 - final) * producer.channels - 1e-9))
            lowest = present[~drop_lowest(score[present], max(0, room))]
            total, gone = total + producer.channels, gone + producer.channels - len(present)
            names.append(name)
            places.append(lowest)
            scores.append(score[lowest])
        goes = ~drop_lowest(torch.cat(scores), max(0, round(share * total) - gone))
        chosen = {}
        for name, place, part in zip(names, places, goes.split([len(p) for p in places]), strict=True):
            chosen[name] = torch.zeros(self.producers[name][0].channels, dtype=torch.bool)
            chosen[name][place[part]] = True
        return chosen

    def _axis(self, producer: Producer) -> int:
        kind = kind_of(self._model.get_submodule(producer.name))
        assert isinstance(kind, Mixer)
        return kind.outputs

    def take(self, chosen: Mapping[str, Tensor]) -> None:
        """Remove channels, bool [channels] by layer."""
        for name, channels in chosen.items():
            self.removed[name] = self.removed.get(name, torch.zeros_like(channels)) | channels
        self._mark()
        for layer in self._sparse.values():
            keep = ~member(layer.positions(), self.excluded(layer))
            layer.move(keep, torch.empty(0, dtype=torch.int64, device=keep.device))
        for parameter, dead in self._dense():
            with torch.no_grad():
                parameter.masked_fill_(dead, 0.0)
            for state in per_weight(self._optimizer, parameter, "a parameter").values():
                state.masked_fill_(dead.to(state.device), 0.0)

    # ---------------------------------------------------------------- around every step

    def _clear(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            parameter.grad.masked_fill_(self._dead[id(parameter)][1], 0.0)

    def gradients(self, step: int) -> bool:
        """Clear the gradients of what is removed once more: ranks may have averaged them since."""
        for parameter, _ in self._dense():
            self._clear(parameter)
        return False

    def stepped(self, step: int) -> None:
        """Zero what is removed."""
        for parameter, dead in self._dense():
            with torch.no_grad():
                parameter.masked_fill_(dead, 0.0)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the removed channels, bool [channels] by layer."""
        return dict(self.removed)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on with the removed channels of a ``state_dict``."""
        self.removed = {name: channels.cpu() for name, channels in state.items()}
        if self._known is not None:
            self._mark()

    def remove(self) -> None:
        """Take all hooks off."""
        for handle in (*self._gradients, self._first):
            handle.remove()
        self._ride.leave(self)


def filter_shares(layer: SparseLayer, axis: int, kernels: bool) -> Tensor:
    """Return the share of every filter's weights, or of its ``kernels``, that are not zero, fp64 [output channels]."""
    inner = math.prod(layer.shape[2:]) if kernels else 1
    parts = (layer.positions()[layer.values() != 0].cpu() // inner).unique()
    size = layer.shape[axis]
    channel = (parts // max(1, math.prod(layer.shape[axis + 1 :]) // inner)) % size
    return torch.bincount(channel, minlength=size).double() / (layer.size / inner / size)


def filter_means(layer: SparseLayer, axis: int, active: bool = False) -> Tensor:
    """Return the mean |w| of every filter, fp64 [output channels] on the CPU.

    Zeros count (the paper's UMM), so that a sparse filter of large weights may rank above a dense one of small ones;
    with ``active`` they do not.

    Args:
        layer: the weight.
        axis: of its output channels.
        active: take the mean over the active weights alone, 0 where there is none.
    """
    inner = math.prod(layer.shape[axis + 1 :])
    channel = (layer.positions().cpu() // inner) % layer.shape[axis]
    size = layer.shape[axis]
    sums = torch.bincount(channel, weights=layer.values().abs().cpu().double(), minlength=size)
    if not active:
        return sums / (layer.size / size)
    return sums / torch.bincount(channel, minlength=size).clamp(min=1)


def grow(layers: Sequence[SparseLayer], barred: Mapping[str, Tensor], count: int) -> None:
    """Grow the ``count`` units of the largest |gradient|, of all layers together, none of them barred.

    Fewer grow where fewer are left; ties go to the earlier layer and the lower index.

    Args:
        layers: the sparse weights.
        barred: int64, ascending, units that must not grow, by layer.
        count: how many.
    """
    candidates, values = [], []
    for layer in layers:
        excluded = union(layer.positions(), barred[layer.name])
        best = layer.top_gradient(min(count, layer.size - len(excluded)), excluded)
        candidates.append(best)
        values.append(layer.gradients_at(best))
    device = values[0].device
    pooled = torch.cat([v.to(device) for v in values])
    stays = drop_lowest(pooled, len(pooled) - min(count, len(pooled)))
    for layer, best, part in zip(layers, candidates, stays.split([len(v) for v in values]), strict=True):
        layer.move(torch.ones(layer.kept, dtype=torch.bool, device=best.device), best[part.to(best.device)])


def _few(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return an example from the inputs of a model; two of a batch are enough."""
    if kwargs and not args:
        return kwargs
    if kwargs:
        raise LowdimError(
            "Chase finds channels in the first forward pass, which must have positional arguments or keyword "
            "arguments, not both"
        )
    if len(args) == 1 and isinstance(args[0], Tensor):
        return args[0][:2].detach()
    return args

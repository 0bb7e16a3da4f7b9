"""Collecting statistics of layer inputs while the samples run through a block."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from lowdim.core.errors import LowdimError
from lowdim.core.statistics import InputStatistics
from lowdim.models import ranks
from lowdim.models.structure.layers import Layer
from lowdim.models.walk.calls import Activation, StopForward
from lowdim.models.walk.stream import Block


class Collector:
    """Sums over the inputs of a block's layers, shared by layers that are given the same tensor.

    Which layers share an input (q, k and v; gate and up) is learnt from the first batch that reaches them: they are
    handed one and the same tensor object. Each distinct input is summed once.

    Args:
        block: the block, its weights in place.
        needs: statistics to keep, see `InputStatistics`.
        layers: layers to observe; all of the block's by default.

    Attributes:
        groups: after `run`, the layers grouped by shared input, in the order in which the block first calls them.
        notes: what could not be done as asked, ``(layer, remark)``.
    """

    def __init__(self, block: Block, needs: Iterable[str], layers: Sequence[Layer] | None = None) -> None:
        self.block = block
        self.needs = frozenset(needs)
        self.layers = {layer.name: layer for layer in (block.layers if layers is None else layers)}
        self.groups: list[list[str]] = []
        self.notes: list[tuple[str, str]] = []
        self._statistics: dict[str, InputStatistics] = {}
        self._leader: dict[str, str] = {}
        self._inputs: dict[str, Tensor] = {}
        self._calls: Counter[str] = Counter()
        self._again = False
        self._mask: Tensor | None = None
        self._stop_at: str | None = None

    def statistics(self, name: str) -> InputStatistics:
        """Return a layer's statistics; those of a layer that saw no token are empty."""
        leader = self._leader.get(name)
        if leader is None:
            return InputStatistics(self.layers[name].shape[1], self.needs)
        return self._statistics[leader]

    @torch.no_grad()
    def run(self, activations: Sequence[Activation], advance: bool = False) -> None:
        """Run every batch through the block and sum.

        Args:
            activations: the states that enter the block.
            advance: replace them by the block's outputs. Otherwise they are left as they were, and all batches but the
                first stop at the last layer observed, whose product nobody needs.
        """
        hooks = [
            layer.module.register_forward_pre_hook(self._hook(name), with_kwargs=True)
            for name, layer in self.layers.items()
        ]
        try:
            for number, activation in enumerate(activations):
                self._inputs = {}
                self._mask = activation.mask
                if advance:
                    self.block.advance(activation)
                    continue
                with suppress(StopForward):
                    self.block.forward(activation)
                if number == 0:
                    self._stop_at = self._last()
        finally:
            self._inputs = {}
            for hook in hooks:
                hook.remove()
        self._complete()

    def _last(self) -> str | None:
        """Return the layer after which nothing more is observed; unknown where routing, or a second call, decides."""
        return None if self.block.routed or self._again else next(reversed(self._inputs), None)

    def _hook(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = args[0] if args else next(iter(kwargs.values()))
            self._observe(name, x)
            if name == self._stop_at:
                raise StopForward

        return hook

    def _observe(self, name: str, x: Tensor) -> None:
        leader = self._leader.get(name)
        if leader is None:
            leader = next((other for other, seen in self._inputs.items() if seen is x), name)
            leader = self._leader.setdefault(name, self._leader.get(leader, name))
        if leader != name and self._inputs.get(leader) is not x and self._calls[leader] == self._calls[name]:
            self._statistics[name] = copy.deepcopy(self._statistics[leader])  # called again, unlike the leader
            leader = self._leader[name] = name
        self._again |= name in self._inputs
        self._inputs[name] = x
        self._calls[name] += 1
        if leader != name:
            if self._inputs.get(leader) is not x:
                raise LowdimError(
                    f"layers {leader!r} and {name!r} shared their input on one batch and not on another. Prune "
                    f"them with targets.exclude=['{name}'] in one run and targets.include=['{name}'] in a second."
                )
            return
        if name not in self._statistics:
            self._statistics[name] = InputStatistics(x.shape[-1], self.needs, x.device)
        self._statistics[name].add(self._tokens(name, x))

    def _tokens(self, name: str, x: Tensor) -> Tensor:
        """Return the rows of ``x`` that belong to real tokens, ``[tokens, in]``."""
        flat = x.reshape(-1, x.shape[-1])
        mask = self._mask
        if mask is None or self.block.is_expert(name):  # padding is never routed to an expert
            return flat
        if len(flat) == mask.numel():
            return flat[mask.reshape(-1).to(flat.device)]
        remark = "padding could not be told from tokens in this layer's input"
        if (name, remark) not in self.notes:
            self.notes.append((name, remark))
        return flat

    def _complete(self) -> None:
        """Add up the ranks' sums, then write down the groups in the order of the calls."""
        ranks.agree(self._leader)
        for name in self.layers:
            if self._leader.get(name) == name:
                width = self.layers[name].shape[1]
                held = self._statistics.setdefault(name, InputStatistics(width, self.needs))
                ranks.add_up(held.tensors())
        order: dict[str, list[str]] = {}
        for name, leader in self._leader.items():
            order.setdefault(leader, []).append(name)
        for name in self.layers:
            if name not in self._leader:
                order[name] = [name]
        self.groups = list(order.values())

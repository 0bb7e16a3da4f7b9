"""A decoder block under another rule than its own, which keeps its class, its parameters and its code."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, partial
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from lowdim.nn.residual.rule import Rule
from lowdim.nn.residual.sites import Branch, first_of


@dataclass(frozen=True)
class Seat:
    """One branch under a rule: the names that the block's code calls, and the norms by what they do now."""

    branch: Branch
    enters: str = ""
    leaves: str = ""
    closes: str = ""


@dataclass(frozen=True)
class Placed:
    """A block's rule, its two seats, the class whose code it runs, and the rule that it came with."""

    rule: Rule
    seats: tuple[Seat, Seat]
    own: Rule
    stock: type[nn.Module]

    def run(self, block: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Return what a block returns under the rule."""
        walk = Walk(self, block, args[0] if args else kwargs["hidden_states"])
        return walk.end(self.stock.forward(walk, *args, **kwargs))

    def enter(self, block: nn.Module, at: int, stream: Tensor) -> Tensor:
        """Return what a branch reads, [..., width]."""
        seat, rule = self.seats[at], self.rule
        read: Tensor = getattr(block, seat.enters)(stream) if seat.enters else stream
        return read if rule.scale == 1.0 else read * rule.scale

    def leave(self, block: nn.Module, at: int, made: Tensor) -> Tensor:
        """Return what a branch gives to the sum, [..., width]."""
        seat = self.seats[at]
        if seat.leaves:
            made = getattr(block, seat.leaves)(made)
        return block.prores(made) if self.rule.ramp else made  # type: ignore[operator]

    def close(self, block: nn.Module, at: int, stream: Tensor, given: Tensor) -> Tensor:
        """Return the stream after a step, where it is not a plain sum, [..., width]."""
        seat, rule = self.seats[at], self.rule
        if rule.gates and seat.closes:
            stream = block.gpas(stream, at)  # type: ignore[operator]
        total = torch.add(given, stream, alpha=rule.skip) if rule.skip != 1.0 else stream + given
        if seat.closes:
            return getattr(block, seat.closes)(total)  # type: ignore[no-any-return]
        return block.gpas(total, at) if rule.gates else total  # type: ignore[operator]


class Walk:
    """One pass through a block: it takes the block's place in the block's own code.

    There ``self.input_layernorm(x)`` is only heard, ``self.self_attn(...)`` reads what the rule says, and everything
    else is the block's. Where the rule is more than a sum, the stream is kept here, and the sums of that code are not
    used.
    """

    forward = None  # Transformers asks a class whether it is the one whose activations are to be checkpointed

    def __init__(self, placed: Placed, block: nn.Module, stream: Tensor) -> None:
        self._placed, self._block, self._stream = placed, block, stream
        for at, seat in enumerate(placed.seats):
            setattr(self, seat.branch.before, self._hear)
            setattr(self, seat.branch.layer, partial(self._run, at))
            if seat.branch.after:
                setattr(self, seat.branch.after, _same)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._block, name)

    def _hear(self, stream: Tensor) -> Tensor:
        if self._placed.rule.plain:
            self._stream = stream
        return stream

    def _run(self, at: int, *args: Any, **kwargs: Any) -> Any:
        placed, block = self._placed, self._block
        read = placed.enter(block, at, self._stream)
        if args:
            args = (read, *args[1:])
        else:
            kwargs["hidden_states"] = read
        output = getattr(block, placed.seats[at].branch.layer)(*args, **kwargs)
        given = placed.leave(block, at, first_of(output))
        if not placed.rule.plain:
            self._stream = placed.close(block, at, self._stream, given)
        return (given, *output[1:]) if isinstance(output, tuple) else given

    def end(self, output: Any) -> Any:
        """Return what the block returns, given what its code does."""
        if self._placed.rule.plain:
            return output
        return (self._stream, *output[1:]) if isinstance(output, tuple) else self._stream


def _same(x: Tensor) -> Tensor:
    return x


class PlacedBlock(nn.Module):
    """Mixed into the class of a block that has a `Placed`."""

    placed: Placed

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the block's code under its rule."""
        return self.placed.run(self, *args, **kwargs)


@cache
def placed_class(stock: type[nn.Module]) -> type[nn.Module]:
    """Return a block's class with the code of `PlacedBlock` before its own, under its own name."""
    return type(stock.__name__, (PlacedBlock, stock), {"__module__": stock.__module__})


def is_placed(module: nn.Module) -> TypeGuard[PlacedBlock]:
    """Tell whether a module is a block with a rule that is not its own."""
    return isinstance(module, PlacedBlock)

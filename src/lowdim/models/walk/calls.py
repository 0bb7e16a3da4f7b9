"""What a block is called with, what it returns, and a model whose blocks are replaced by a function.

A block is given hidden states and returns them; some return more, and hand it to a later block: a router's state, the
tokens that an index chose. While a model runs with its blocks replaced, a `Wire` stands for each such value.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from lowdim.core.errors import LowdimError
from lowdim.data.batch import Batch

Call = tuple[tuple[Any, ...], dict[str, Any]]
Stub = Callable[[int, Tensor, Call], Tensor]
Own = dict[str, Any]


class StopForward(Exception):
    """Raised from inside a forward when the rest of it is not needed."""


@dataclass(frozen=True)
class Wire:
    """Stands among a block's arguments for what an earlier block returned beside its hidden states."""

    block: int
    place: int


_HANDED = object()


@dataclass(frozen=True)
class Returned:
    """How a block returns its hidden states.

    Attributes:
        place: where they are in a tuple; ``None`` if they are returned alone.
        others: the tuple's members, a mark where a value is not the same for every input.
        listed: whether it is a list instead.

    Example:
        >>> import torch
        >>> x = torch.zeros(1, 2, 3)
        >>> Returned.of(x, x).place, Returned.of((None, x), x).place
        (None, 1)
    """

    place: int | None = None
    others: tuple[Any, ...] = ()
    listed: bool = False

    @classmethod
    def of(cls, out: Any, hidden: Tensor) -> Returned:
        """Return how ``out`` holds the hidden states that a block made of ``hidden``.

        Raises:
            LowdimError: it holds none.
        """
        if isinstance(out, Tensor) and out.shape == hidden.shape:
            return cls()
        for place, value in enumerate(out if isinstance(out, tuple | list) else ()):
            if isinstance(value, Tensor) and value.shape == hidden.shape:
                others = (v if v is None or isinstance(v, bool | int | float) else _HANDED for v in out)
                return cls(place, tuple(others), isinstance(out, list))
        raise LowdimError("a block returns no hidden states of the shape that it is given")

    @property
    def handed(self) -> list[int]:
        """The places of what the block may hand to later ones."""
        return [place for place, value in enumerate(self.others) if value is _HANDED and place != self.place]

    def hidden(self, out: Any) -> Tensor:
        """Return the hidden states of what a block returned."""
        found: Tensor = out if self.place is None else out[self.place]
        return found

    def made(self, hidden: Tensor, index: int, issued: dict[int, tuple[Wire, Tensor]]) -> Any:
        """Return what block ``index`` would, with empty tensors for what it hands on; they are noted in ``issued``."""
        if self.place is None:
            return hidden
        values = list(self.others)
        for place in self.handed:
            values[place] = blank = hidden.new_empty(0)
            issued[id(blank)] = Wire(index, place), blank
        values[self.place] = hidden
        return values if self.listed else tuple(values)


@dataclass
class Activation:
    """The state of one batch between two blocks.

    Attributes:
        batch: the tokens.
        hidden: hidden states that enter the next block; ``[B, T, D]`` in most models.
        calls: per block, the further positional and keyword arguments that the model gives it.
        carried: what blocks have handed to later ones.
    """

    batch: Batch
    hidden: Tensor
    calls: list[Call]
    carried: dict[Wire, Any] = field(default_factory=dict)

    @property
    def mask(self) -> Tensor | None:
        """Bool ``[B, T]``, True = a real token; ``None`` if the batch has no padding."""
        return None if self.batch.attention_mask is None else self.batch.attention_mask.bool()

    def run(self, module: nn.Module, index: int, keep: bool) -> Any:
        """Return what a block returns for this state.

        With ``keep``, what it hands on is carried along and dictionaries that blocks share hold what it wrote into
        them. Without, everything is as it was, and the block may run again.
        """
        args, kwargs = self.calls[index]

        def given(value: Any) -> Any:
            value = self.carried[value] if isinstance(value, Wire) else value
            return copy.deepcopy(value) if not keep and isinstance(value, list | MutableMapping) else value

        out = module(self.hidden, *map(given, args), **{name: given(value) for name, value in kwargs.items()})
        if keep:
            asked = [value for args, kwargs in self.calls for value in (*args, *kwargs.values())]
            for wire in asked:
                if isinstance(wire, Wire) and wire.block == index:
                    self.carried[wire] = out[wire.place]
        return out


def swap(module: nn.Module, own: Own) -> Own:
    """Put entries of a module's own into it, ``None`` takes one out; return those that were in their places.

    Example:
        >>> layer = nn.Linear(1, 1)
        >>> swap(layer, swap(layer, {"forward": abs}))["forward"]
        <built-in function abs>
    """
    before = {name: vars(module).get(name) for name in own}
    for name, value in own.items():
        if value is None:
            vars(module).pop(name, None)
        else:
            vars(module)[name] = value
    return before


@contextmanager
def stubbed(blocks: nn.ModuleList, stub: Stub, returned: Sequence[Returned]) -> Iterator[list[Own]]:
    """Replace every block's forward by ``stub(index, hidden, (args, kwargs))``; it returns as the block would.

    A forward of its own that a block was given, and its hooks, act where the block itself runs: they are taken off
    meanwhile, and yielded for `swap`.
    """
    issued: dict[int, tuple[Wire, Tensor]] = {}

    def wired(value: Any) -> Any:
        wire, blank = issued.get(id(value), (None, None))
        return wire if blank is value and wire is not None else value

    def forward(index: int) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            hidden, rest = (args[0], args[1:]) if args else (kwargs.pop("hidden_states"), ())
            call = tuple(map(wired, rest)), {name: wired(value) for name, value in kwargs.items()}
            out = stub(index, hidden, call)
            return returned[index].made(out, index, issued)

        return run

    own: list[Own] = []
    try:
        for index, module in enumerate(blocks):
            own.append(swap(module, {"forward": forward(index), "_forward_hooks": {}, "_forward_pre_hooks": {}}))
        yield own
    finally:
        for module, before in zip(blocks, own, strict=False):
            swap(module, before)

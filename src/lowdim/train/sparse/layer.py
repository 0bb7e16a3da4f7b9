"""What a method sees of a sparse weight, and where it has been."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Generator, Tensor, nn
from torch.utils.hooks import RemovableHandle

from lowdim.core.errors import LowdimError
from lowdim.core.packing.bits import pack_bits, unpack_bits
from lowdim.core.pattern.units import Units

# Up to this many units there is a byte for each; larger weights, of which little is ever active, are not followed.
_FOLLOWED = 1 << 28


class SparseLayer(Protocol):
    """One sparse weight, however it is stored. A unit is one weight, or a block where the pattern says so."""

    name: str
    shape: tuple[int, ...]
    size: int

    @property
    def module(self) -> nn.Module:
        """The module that holds the weight."""

    @property
    def parameter(self) -> nn.Parameter:
        """What the optimizer trains."""

    @property
    def units(self) -> Units:
        """What stands or falls together, and which groups keep their own number."""

    @property
    def kept(self) -> int:
        """Active units."""

    def positions(self) -> Tensor:
        """Return the active units, int64 [kept], ascending."""

    def values(self) -> Tensor:
        """Return the active weights (the norms of blocks), fp32 [kept]."""

    def gradients(self) -> Tensor:
        """Return the gradient of the active weights (its norms over blocks), fp32 [kept]."""

    def top_gradient(self, count: int, excluded: Tensor) -> Tensor:
        """Return the units with the largest |gradient|, int64 [count], ascending, ties by the lowest index.

        Args:
            count: how many. Where groups keep their own numbers, what ``excluded`` lacks of them.
            excluded: int64, ascending, units that are out.
        """

    def gradients_at(self, positions: Tensor) -> Tensor:
        """Return the |dense gradient| of any units (norms over blocks), fp32 [len(positions)]."""

    def top(self, scores: Tensor, count: int, excluded: Tensor) -> Tensor:
        """Return the units with the highest scores, none negative, [size], overwritten; see ``top_gradient``."""

    def draw(self, count: int, excluded: Tensor, generator: Generator) -> Tensor:
        """Return units drawn at random, int64 [count], ascending; see ``top_gradient``."""

    def move(self, keep: Tensor, grown: Tensor, values: Tensor | None = None) -> None:
        """Drop and grow.

        Args:
            keep: bool [kept], the active units that stay.
            grown: int64, ascending, units that become active, none of those that stay. Those that were active until
                now keep their weight and their optimizer state, the others start from zero.
            values: the weights of all units grown, fp32 [len(grown)]; they all start with an optimizer state of zero.
        """

    def mask(self) -> Tensor:
        """Return which weights are active, bool [shape]."""

    def snapshot(self) -> Any:
        """Return the present mask, at next to no cost, for ``changed``."""

    def changed(self, before: Any) -> tuple[int, int]:
        """Return how many units were dropped and grown since a ``snapshot``."""


class Held(SparseLayer, Protocol):
    """A layer as the trainer holds it, around an optimizer's step."""

    def watch(self, on: bool) -> None:
        """Start or stop preparing for ``top_gradient`` at the coming step; call it before its forward."""

    def listen(self, coming: Callable[[], bool]) -> list[RemovableHandle]:
        """Clear the gradient of what is off as soon as it is there, unless masks move at the coming step."""

    def check(self) -> None:
        """Refuse to go on with a parameter that the model no longer uses."""

    def finite(self) -> bool:
        """Tell whether this rank's gradient holds neither NaN nor Inf."""

    def hold_gradient(self) -> None:
        """Keep the dense gradient until ``release``, whatever happens to the parameter's own."""

    def release(self) -> None:
        """Forget the dense gradient."""

    def clear_gradient(self) -> None:
        """Zero the gradient of what is off."""

    def clear_weight(self) -> None:
        """Zero what is off."""

    def clear_state(self) -> None:
        """Let the optimizer forget what it remembers of what is off."""

    def still(self, looks: bool, prunes: bool = False) -> bool:
        """Tell whether there is no gradient to move by.

        Args:
            looks: whether the update looks at it, so that zeros are none: they say nothing of where to grow.
            prunes: whether the update has a number to reach, so that zeros are none for stacked experts alone.
        """

    @property
    def touched(self) -> bool:
        """Whether somebody else has written the weights since they were zeroed last."""

    @property
    def waits(self) -> bool:
        """Whether these are weights that a run has not read its own into yet."""

    def written(self) -> Tensor:
        """Return this rank's weights as somebody else wrote them last, before the first mask zeroed any."""

    def astray(self, state: Tensor | None = None) -> int:
        """Count this rank's weights that are off and not zero: as they are, or as written and by a ``state``."""

    def state(self) -> Tensor:
        """Return where the active units are, for ``load``."""

    def give_back(self) -> None:
        """Put back what the first mask zeroed, before the first step."""

    def load(self, state: Tensor, proven: bool = True) -> None:
        """Take the mask of a ``state``; unless it is ``proven`` to fit, leave the weights as they are."""


class Explored:
    """Which units were ever active: the numerator of the in-time over-parameterisation rate.

    Args:
        size: units in all.

    Attributes:
        followed: False for weights of more than 2^28 units, for which nothing is held.
    """

    def __init__(self, size: int) -> None:
        self.followed = size <= _FOLLOWED
        self._size = size
        self._marked = torch.zeros(size if self.followed else 0, dtype=torch.bool)

    def add(self, positions: Tensor) -> None:
        """Mark positions, int64."""
        if self.followed:
            self._marked[positions.cpu()] = True

    def positions(self) -> Tensor:
        """Return all positions marked, int64, ascending.

        Raises:
            LowdimError: the weight is too large to be followed.
        """
        if not self.followed:
            raise LowdimError(
                f"which of {self._size} weights were ever active is not held (the limit is 2^28); grow them by another "
                "rule"
            )
        return self._marked.nonzero().flatten()

    def __len__(self) -> int:
        return int(self._marked.sum())

    def state(self) -> Tensor:
        """Return what ``load`` takes, int64."""
        return pack_bits(self._marked[None])

    def load(self, state: Tensor) -> None:
        """Replace what is marked."""
        self._marked = unpack_bits(state.cpu(), len(self._marked))[0].clone()

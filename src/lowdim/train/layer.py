"""What a method sees of a sparse weight, and where it has been."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Generator, Tensor, nn

from lowdim.core.bits import pack_bits, unpack_bits
from lowdim.core.transition import union

# Up to this many units a bit for each is held; beyond, the positions that were ever active.
_BITS = 1 << 30


class Layer(Protocol):
    """One sparse weight, however it is stored. A unit is one weight, or a block where the pattern says so."""

    name: str
    shape: tuple[int, ...]
    parameter: nn.Parameter
    size: int

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

    def draw(self, count: int, excluded: Tensor, generator: Generator) -> Tensor:
        """Return units drawn at random, int64 [count], ascending; see ``top_gradient``."""

    def move(self, keep: Tensor, grown: Tensor, values: Tensor | None = None) -> None:
        """Drop and grow.

        Args:
            keep: bool [kept], the active units that stay.
            grown: int64, ascending, units that become active, none of which stays. Those that were active until
                now go on with their weight and their optimizer state, the others start from zero.
            values: the weights of all units grown, fp32 [len(grown)]; they all start with an optimizer state of zero.
        """

    def mask(self) -> Tensor:
        """Return which weights are active, bool [shape]."""


class Explored:
    """Which units were ever active: the numerator of the in-time over-parameterisation rate.

    Args:
        size: units in all.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._bits = torch.zeros(size, dtype=torch.bool) if size <= _BITS else None
        self._known = torch.empty(0, dtype=torch.int64)

    def add(self, positions: Tensor) -> None:
        """Mark positions, int64."""
        if self._bits is not None:
            self._bits[positions.cpu()] = True
        else:
            self._known = union(self._known, positions.cpu())

    def positions(self) -> Tensor:
        """Return all positions marked, int64, ascending."""
        return self._known if self._bits is None else self._bits.nonzero().flatten()

    def __len__(self) -> int:
        return len(self._known) if self._bits is None else int(self._bits.sum())

    def state(self) -> Tensor:
        """Return what ``load`` takes, int64."""
        return self._known if self._bits is None else pack_bits(self._bits[None])

    def load(self, state: Tensor) -> None:
        """Replace what is marked."""
        if self._bits is None:
            self._known = state.cpu()
        else:
            self._bits = unpack_bits(state.cpu(), self._size)[0].clone()

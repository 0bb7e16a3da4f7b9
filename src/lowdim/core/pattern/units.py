"""What stands or falls together in one weight."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING

from lowdim.core.errors import PatternError

if TYPE_CHECKING:
    from torch import Tensor

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Units(ABC):
    """The units of one weight, numbered from 0.

    Attributes:
        shape: of the weight.
        size: how many units there are.
        groups: if more than one, units fall into that many equal runs, each of which always keeps its own number.
        rows: outputs that a unit spans.
    """

    shape: Shape
    size: int
    groups: int = 1
    rows: int = 1

    @abstractmethod
    def values(self, weight: Tensor) -> Tensor:
        """Return one number per unit, [size]: the weight itself, or the norm of the unit's weights."""

    @abstractmethod
    def spread(self, kept: Tensor) -> Tensor:
        """Return the mask of the weight, bool [shape], that keeps the units marked in ``kept``, bool [size]."""

    @property
    def weights(self) -> int:
        """Weights in one unit."""
        return prod(self.shape) // max(1, self.size)


@dataclass(frozen=True)
class Entries(Units):
    """Every weight is a unit; with ``inputs_last`` they are numbered so that a group spans inputs."""

    inputs_last: bool = False

    def values(self, weight: Tensor) -> Tensor:
        """Return the weights in the order of the units."""
        return (weight.movedim(1, -1) if self.inputs_last else weight).reshape(-1)

    def spread(self, kept: Tensor) -> Tensor:
        """Return the mask."""
        if not self.inputs_last:
            return kept.reshape(self.shape)
        rows, cols, *rest = self.shape
        return kept.reshape(rows, *rest, cols).movedim(-1, 1).contiguous()


@dataclass(frozen=True)
class Blocks(Units):
    """A unit is ``rows`` outputs by ``cols`` inputs, with all positions of a convolution's kernel."""

    cols: int = 1

    def _split(self) -> tuple[int, ...]:
        out, inputs, *kernel = self.shape
        return out // self.rows, self.rows, inputs // self.cols, self.cols, prod(kernel)

    def values(self, weight: Tensor) -> Tensor:
        """Return the L2 norm of every block."""
        return weight.float().reshape(self._split()).square().sum((1, 3, 4)).sqrt().reshape(-1)

    def spread(self, kept: Tensor) -> Tensor:
        """Return the mask."""
        high, _, wide, _, _ = split = self._split()
        return kept.reshape(high, 1, wide, 1, 1).expand(split).reshape(self.shape).contiguous()


@dataclass(frozen=True)
class Turned(Units):
    """The units of a weight [in, out / parts, kernel...], as they are in the weight [out, in / parts, kernel...].

    Attributes:
        inner: the units of that weight.
        parts: groups of a convolution; the inputs of one reach its own outputs alone.
    """

    inner: Units = field(kw_only=True)
    parts: int = field(kw_only=True, default=1)

    def values(self, weight: Tensor) -> Tensor:
        """Return the inner units' numbers."""
        split = weight.unflatten(0, (self.parts, -1)).transpose(1, 2)
        return self.inner.values(split.reshape(self.inner.shape))

    def spread(self, kept: Tensor) -> Tensor:
        """Return the mask."""
        split: Tensor = self.inner.spread(kept).unflatten(0, (self.parts, -1)).transpose(1, 2)
        return split.reshape(self.shape).contiguous()


def whole(name: str, shape: Shape, axis: int, unit: int, what: str) -> int:
    """Return how many units of ``unit`` outputs (axis 0) or inputs (axis 1) a weight has.

    Raises:
        PatternError: they are not whole; names the weight, its size and the remedy.
    """
    if shape[axis] % unit:
        side = ("outputs", "inputs")[axis]
        raise PatternError(
            f"{name} has {shape[axis]} {side}, which is not a whole number of {what}s of {unit}; "
            "exclude the layer or choose another pattern"
        )
    return shape[axis] // unit

"""What stands or falls together in one weight that is trained sparsely."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor

from lowdim.core.errors import PatternError, RecipeError
from lowdim.core.pattern import NM, Block, Unstructured, parse

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
    """The units of a weight [in, out, kernel...], as they are in the weight [out, in, kernel...]."""

    inner: Units = field(kw_only=True)

    def values(self, weight: Tensor) -> Tensor:
        """Return the inner units' numbers."""
        return self.inner.values(weight.transpose(0, 1))

    def spread(self, kept: Tensor) -> Tensor:
        """Return the mask."""
        return self.inner.spread(kept).transpose(0, 1).contiguous()


def units_of(pattern: str, name: str, shape: Shape) -> Units:
    """Cut a weight into units.

    Args:
        pattern: "unstructured"; "fan-in", every output keeps the same number of inputs (SRigL, arXiv 2305.02299);
            N:M such as "2:4", along the inputs; ROWSxCOLS such as "16x16", blocks of outputs by inputs, a whole
            kernel per pair in convolutions ("1x1" there is kernel-wise); "gates:4", the rows in four stacked
            parts that each keep their number.
        name: of the weight, for messages.
        shape: [out, in, kernel...]; `Turned` serves layers that hold it as [in, out, kernel...].

    Raises:
        RecipeError: the pattern is none of these.
        PatternError: the weight does not fall into whole units.

    Example:
        >>> units_of("unstructured", "fc", (4, 6)).size, units_of("2x3", "fc", (4, 6)).size
        (24, 4)
        >>> units_of("1:2", "fc", (4, 6)).groups, units_of("fan-in", "fc", (4, 6)).groups
        (12, 4)
    """
    numel = prod(shape)
    if pattern == "fan-in":
        return Entries(shape, numel, groups=shape[0])
    if found := re.fullmatch(r"gates:(\d+)", pattern):
        return Entries(shape, numel, groups=_whole(name, shape, 0, max(1, int(found[1])), "gate"))
    known = parse(pattern)
    if isinstance(known, Unstructured):
        return Entries(shape, numel)
    if isinstance(known, NM):
        _whole(name, shape, 1, known.group, "group")
        return Entries(shape, numel, groups=numel // known.group, inputs_last=True)
    if isinstance(known, Block):
        _whole(name, shape, 0, known.rows, "block")
        _whole(name, shape, 1, known.cols, "block")
        count = (shape[0] // known.rows) * (shape[1] // known.cols)
        return Blocks(shape, count, rows=known.rows, cols=known.cols)
    raise RecipeError(
        f"pattern {pattern!r} cannot be trained; choose unstructured, fan-in, N:M, ROWSxCOLS or gates:N"
    )


def _whole(name: str, shape: Shape, axis: int, unit: int, what: str) -> int:
    if shape[axis] % unit:
        side = ("outputs", "inputs")[axis]
        raise PatternError(
            f"{name} has {shape[axis]} {side}, which is not a whole number of {what}s of {unit}; "
            "exclude the layer or choose another pattern"
        )
    return unit


def quotas(pattern: str, units: Units, kept: int) -> Tensor | None:
    """Return how many units each group keeps, int64 [groups]; None where units do not fall into groups.

    N:M keeps N. Other groups share ``kept`` weights, the same number each (at least one), rounded.
    """
    if found := re.fullmatch(r"(\d+):(\d+)", pattern):
        return torch.full((units.groups,), int(found[1]))
    if units.groups == 1:
        return None
    room = units.size // units.groups
    return torch.full((units.groups,), min(room, max(1, round(kept / units.groups))))

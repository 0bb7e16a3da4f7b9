"""Directions in 4 bits, looked for ever more seldom where they stand still."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lowdim.core.lazy import torch
from lowdim.core.settings import count, within
from lowdim.train.optimizers.projector import Held, Projector, Side
from lowdim.train.optimizers.projectors import SVD, Power

if TYPE_CHECKING:
    from torch import Tensor

GROUP = 256


@dataclass(frozen=True)
class Lazy(Projector):
    """Keeps directions as 4-bit codes, and doubles the gap of a matrix whose directions hardly change.

    The overlap of old directions A and new ones B is |A B^T|^2 / r, the mean squared cosine of the principal angles of
    the two spaces: between 0 and 1, whatever the signs and the order of the vectors. Once the mean of the last
    ``queue`` overlaps is ``tau`` or more, every choice multiplies the gap by ``gamma``. Choices fall on multiples of
    the gap.

    Args:
        rank: directions that are kept; at most the smaller side of every matrix.
        gap: steps of a matrix between two choices, at first.
        scale: of the update.
        side: which side of a matrix is projected.
        seed: of what is drawn.
        bits: 4, two codes a byte, or 32: as the gradient is.
        tau: overlap from which directions stand still; above 1 they never do.
        gamma: factor on the gap.
        queue: choices that the mean is over.
    """

    bits: Literal[4, 32] = 4
    tau: float = within(0.4, above=0)
    gamma: int = count(2)
    queue: int = count(5)

    def choose(self, matrix: Tensor, held: Held, draw: torch.Generator, dtype: torch.dtype) -> None:
        """Write the directions of a matrix into what is kept, and its gap."""
        sides = self.sides(tuple(matrix.shape))
        known = held.get("due", 0) > 0
        old = {side: self.directions(held, side, matrix) if known else None for side in sides}
        super().choose(matrix, held, draw, dtype)
        overlaps = [
            float((before.float() @ held[side].float().T).square().sum()) / self.rank
            for side, before in old.items()
            if before is not None
        ]
        held.setdefault("gap", self.gap)
        last = held.get("overlaps", torch.full((self.queue,), torch.nan))
        if overlaps:
            last = torch.cat([last[1:], torch.tensor([sum(overlaps) / len(overlaps)])])
            if float(last.mean()) >= self.tau:  # which it is not before the queue is full
                held["gap"] *= self.gamma
        held["overlaps"] = last
        for side in sides if self.bits == 4 else ():
            self._pack(held, side)

    def _pack(self, held: Held, side: Side) -> None:
        from lowdim.nn.grouped import pack, quantise

        codes, held[f"{side}_scales"], held[f"{side}_zeros"] = quantise(held[side], self.bits, GROUP)
        held[side] = pack(codes)

    def directions(self, held: Held, side: Side, like: Tensor) -> Tensor | None:
        """Return the directions on a side, unpacked."""
        from lowdim.nn.grouped import dequantise, unpack

        if side not in held or self.bits == 32:
            return super().directions(held, side, like)
        codes = unpack(held[side], (self.rank, like.shape[1 if side == "right" else 0]))
        return dequantise(codes, held[f"{side}_scales"], held[f"{side}_zeros"], GROUP).to(like.dtype)


@dataclass(frozen=True)
class LazySVD(Lazy, SVD):
    """`Lazy` directions by an exact decomposition."""


@dataclass(frozen=True)
class LazyPower(Lazy, Power):
    """`Lazy` directions by subspace iteration from the last ones."""

"""Projectors: a few directions of a matrix, in which an optimizer keeps its memory of the gradient."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from lowdim.core.errors import LowdimError, RecipeError
from lowdim.core.lazy import torch
from lowdim.core.random import generator
from lowdim.core.settings import Settings, count, within

if TYPE_CHECKING:
    from torch import Tensor

Side = Literal["left", "right"]
Held = dict[str, Any]
"""What is kept of one matrix between steps: tensors and whole numbers."""


@dataclass(frozen=True)
class Projector(Settings, ABC):
    """Chooses r directions from the gradient G [m, n] of a matrix, every so many of its steps, and keeps them.

    With the directions in the rows of L [r, m] and R [r, n], the small gradient is L G R^T, either of the two left out;
    a step u of the small space goes back as scale * L^T u R. What is kept names the sides, so that no shape is asked
    which one it was: "left" and "right" are the directions, "due" is the step of the next choice.

    Args:
        rank: r, directions that are kept; at most the smaller side of every matrix.
        gap: steps of a matrix between two choices. Steps without a gradient do not count.
        scale: of the update; 0.25 is for training from scratch, fine-tuning needs 2 to 4.
        side: "std" projects the smaller side of the matrix, the right one of a square; "reverse_std" the larger;
            "left", "right" and "full" (both) whatever the shape.
        seed: of what is drawn.
    """

    rank: int = count(128)
    gap: int = count(200)
    scale: float = within(0.25, above=0)
    side: Literal["std", "reverse_std", "left", "right", "full"] = "std"
    seed: int = 0

    @abstractmethod
    def basis(self, matrix: Tensor, old: Tensor | None, draw: torch.Generator) -> Tensor:
        """Return directions on the right of a matrix, in order of importance.

        Args:
            matrix: fp32 [rows, cols], finite and not zero.
            old: [r, cols], those it had before.
            draw: for what is drawn.

        Returns:
            fp32 [r, cols].
        """

    def sides(self, shape: tuple[int, ...]) -> tuple[Side, ...]:
        """Return which sides of a matrix are projected.

        Raises:
            LowdimError: it is no matrix.
            RecipeError: it has a side smaller than the rank.

        Example:
            >>> from lowdim.train.optimizers.projectors import SVD
            >>> SVD(rank=2).sides((3, 2)), SVD(rank=2).sides((2, 3)), SVD(rank=2, side="reverse_std").sides((3, 2))
            (('right',), ('left',), ('left',))
        """
        if len(shape) != 2:
            raise LowdimError(
                f"a projector takes matrices; got a weight of shape {tuple(shape)}. Leave it out of targets."
            )
        if self.rank > min(shape):
            raise RecipeError(
                f"rank={self.rank} exceeds the smaller side of a weight of shape {tuple(shape)}. Take at most "
                f"{min(shape)}, or leave the weight out of targets."
            )
        if self.side == "full":
            return ("left", "right")
        if self.side in ("left", "right"):
            return (self.side,)
        tall = shape[0] >= shape[1]
        return ("right",) if tall == (self.side == "std") else ("left",)

    def refresh(self, gradient: Tensor, held: Held, step: int, place: int) -> bool:
        """Choose directions where a choice is due; return whether there are any.

        A gradient that is zero or not finite chooses nothing: what there is stays, the next step tries again. Where
        there is nothing yet, a zero gradient has any directions for a step: such a step makes the state that a
        distributed checkpoint is loaded into.

        Args:
            gradient: [m, n]; of a sharded one all ranks must call.
            held: of the matrix; written.
            step: of the matrix, from 0.
            place: of the matrix among those of the optimizer; decides what is drawn.
        """
        if step < held.get("due", 0):
            return True
        from lowdim.train.sparse.distributed import full

        matrix = full(gradient).float()
        largest = float(matrix.abs().amax())
        chosen, there = bool(held.get("due", 0)), largest != 0
        if not math.isfinite(largest) or (chosen and not there):
            warnings.warn(
                f"the gradient of matrix {place} is zero or not finite where its directions were to be chosen: "
                f"{'the old ones stay' if chosen else 'it is not trained'} until it is a gradient again",
                stacklevel=2,
            )
            return chosen
        draw = generator(self.seed, "projector", place, step, device=str(matrix.device))
        shown = matrix / largest if there else torch.eye(*matrix.shape, device=matrix.device)
        self.choose(shown, held, draw, gradient.dtype)  # products of very large or small entries leave fp32
        gap = held.get("gap", self.gap)
        held["due"] = (step // gap + 1) * gap if there else 0
        return True

    def choose(self, matrix: Tensor, held: Held, draw: torch.Generator, dtype: torch.dtype) -> None:
        """Write the directions of a matrix into what is kept, in a dtype."""
        for side in self.sides(tuple(matrix.shape)):
            turned = matrix if side == "right" else matrix.T
            held[side] = self.basis(turned, self.directions(held, side, matrix), draw).to(dtype)

    def directions(self, held: Held, side: Side, like: Tensor) -> Tensor | None:
        """Return the directions on a side, [r, m] or [r, n]; None if there are none."""
        found: Tensor | None = held.get(side)
        return found

    def project(self, gradient: Tensor, held: Held) -> Tensor:
        """Return L G R^T; sharded as G is where only R is there."""
        left, right = (self._as(gradient, held, side) for side in ("left", "right"))
        small = gradient if left is None else _whole(left @ gradient)
        return small if right is None else small @ right.mT

    def back(self, update: Tensor, held: Held, gradient: Tensor, rate: float) -> Tensor:
        """Return scale * L^T u R.

        Args:
            update: u, the step of the small space.
            held: of the matrix.
            gradient: G.
            rate: the learning rate that is part of u, where that is not 0.
        """
        left, right = (self._as(gradient, held, side) for side in ("left", "right"))
        wide = update if right is None else update @ right
        return (wide if left is None else left.mT @ wide).mul_(self.scale)

    def _as(self, gradient: Tensor, held: Held, side: Side) -> Any:
        """Return the directions on a side as the gradient can be multiplied by."""
        from torch.distributed.tensor import DTensor, Replicate

        found = self.directions(held, side, gradient)
        if found is None or not isinstance(gradient, DTensor):
            return found
        mesh = gradient.device_mesh
        return DTensor.from_local(found, mesh, [Replicate()] * mesh.ndim, run_check=False)


def _whole(small: Any) -> Any:
    """Return a product with the sum over all ranks in each of them."""
    from torch.distributed.tensor import DTensor, Replicate

    return (
        small.redistribute(placements=[Replicate()] * small.device_mesh.ndim) if isinstance(small, DTensor) else small
    )


def upright(rows: Tensor) -> Tensor:
    """Return rows with signs that do not depend on how they were found: the largest entry of each is positive.

    Example:
        >>> upright(torch.tensor([[1.0, -2.0], [3.0, 1.0]])).tolist()
        [[-1.0, 2.0], [3.0, 1.0]]
    """
    largest = rows.gather(1, rows.abs().argmax(1, keepdim=True))
    return torch.where(largest < 0, -rows, rows)

"""How the directions are found: exactly, by a random sketch, from the last ones, or by no look at the gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowdim.core.lazy import torch
from lowdim.core.settings import count
from lowdim.train.optimizers.projector import Held, Projector, Side, upright

if TYPE_CHECKING:
    from torch import Tensor

_ALONE, _WEAK = 1e-3, 1e-6
"""What fp32 can tell apart: a direction's energy outside of the others', and in shares of the strongest's."""


@dataclass(frozen=True)
class SVD(Projector):
    """The leading singular vectors, by a full decomposition in fp32, with signs that all machines agree on.

    Example:
        >>> import torch
        >>> gradient, held = torch.tensor([[3.0, 0.0], [0.0, 1.0], [0.0, 0.0]]), {}
        >>> SVD(rank=1).refresh(gradient, held, step=0, place=0), held["right"].tolist()
        (True, [[1.0, 0.0]])
    """

    def basis(self, matrix: Tensor, old: Tensor | None, draw: torch.Generator) -> Tensor:
        """Return the first right singular vectors."""
        return upright(torch.linalg.svd(matrix, full_matrices=False).Vh[: self.rank].contiguous())


@dataclass(frozen=True)
class Randomised(Projector):
    """The leading singular vectors of a random sketch: products and thin QR, no decomposition of the gradient.

    A sketch of r + oversample random combinations of the rows is sharpened by multiplications with G^T G, made
    orthogonal, and rotated to the singular vectors of what G is inside it.

    Paper: "Finding structure with randomness", arXiv 0909.4061.

    Args:
        rank: r, directions that are kept; at most the smaller side of every matrix.
        gap: steps of a matrix between two choices.
        scale: of the update.
        side: which side of a matrix is projected.
        seed: of what is drawn.
        oversample: columns of the sketch beyond r.
        iterations: multiplications with G^T G.
    """

    oversample: int = count(10, least=0)
    iterations: int = count(2, least=0)

    def basis(self, matrix: Tensor, old: Tensor | None, draw: torch.Generator) -> Tensor:
        """Return the first right singular vectors of the sketch."""
        width = min(self.rank + self.oversample, *matrix.shape)
        start = torch.randn(matrix.shape[0], width, generator=draw, device=matrix.device)
        return sharpened(matrix, torch.linalg.qr(matrix.T @ start).Q, self.iterations, self.rank)


@dataclass(frozen=True)
class Power(Randomised):
    """Subspace iteration from the directions that there are: gradients of neighbouring choices are alike.

    The first choice is that of `Randomised`.

    Args:
        rank: r, directions that are kept; at most the smaller side of every matrix.
        gap: steps of a matrix between two choices.
        scale: of the update.
        side: which side of a matrix is projected.
        seed: of what is drawn.
        oversample: columns of the first sketch beyond r, and of fresh random ones beside the old directions.
        iterations: multiplications with G^T G.
    """

    iterations: int = count(1)

    def basis(self, matrix: Tensor, old: Tensor | None, draw: torch.Generator) -> Tensor:
        """Return the old directions, turned towards the gradient."""
        if old is None:
            return super().basis(matrix, old, draw)
        width = min(self.oversample, min(matrix.shape) - self.rank)
        start = torch.randn(matrix.shape[0], width, generator=draw, device=matrix.device)
        held, fresh = old.float().T, matrix.T @ start
        for _ in range(2):
            fresh = torch.linalg.qr(fresh - held @ (held.T @ fresh)).Q
        return sharpened(matrix, torch.cat([held, fresh], 1), self.iterations, self.rank)


@dataclass(frozen=True)
class Krylov(Projector):
    """The leading singular vectors within all that some random directions become under products with G^T G.

    Where singular values fall slowly, as those of trained weights do, the last product alone (`Randomised`) is far from
    them; all products together hold them nearly to rounding. r / 2 directions are multiplied until ``depth`` r are
    there, each made orthogonal to all before.

    Paper: "Randomized Block Krylov Methods for Stronger and Faster Approximate Singular Value Decomposition", 2015,
    arXiv 1504.05477.

    Args:
        rank: r, directions that are kept; at most the smaller side of every matrix.
        gap: steps of a matrix between two choices.
        scale: of the update.
        side: which side of a matrix is projected.
        seed: of what is drawn.
        depth: directions that are held meanwhile, in multiples of r.

    Example:
        >>> import torch
        >>> draw = torch.Generator().manual_seed(0)
        >>> found = Krylov(rank=2).basis(torch.diag(torch.tensor([1.0, 1.01, 1.02, 1.03])), None, draw)
        >>> found.abs().round(decimals=4).tolist()
        [[0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 1.0, 0.0]]
    """

    depth: int = count(6, least=2)

    def basis(self, matrix: Tensor, old: Tensor | None, draw: torch.Generator) -> Tensor:
        """Return the first right singular vectors within the directions."""
        width, most = -(-self.rank // 2), min(self.depth * self.rank, *matrix.shape)
        start = torch.randn(matrix.shape[0], width, generator=draw, device=matrix.device)
        found = torch.linalg.qr(matrix.T @ start).Q
        inside = [matrix @ found]
        while found.shape[1] < most:
            fresh = matrix.T @ inside[-1][:, -width:]
            # A matrix of low rank gives no more directions than that; what is drawn beside them is above rounding.
            drawn = torch.randn(fresh.shape, generator=draw, device=matrix.device)
            fresh = fresh.add_(drawn, alpha=1e-5 * float(fresh.square().mean().sqrt()))
            for _ in range(2):
                fresh = torch.linalg.qr(fresh - found @ (found.T @ fresh)).Q
            fresh = fresh[:, : most - found.shape[1]]
            found = torch.cat([found, fresh], 1)
            inside.append(matrix @ fresh)
        return turned(found, torch.cat(inside, 1), self.rank)


@dataclass(frozen=True)
class Random(Projector):
    """Gaussian directions of variance 1/r, which are not orthogonal; drawn again at every use instead of kept.

    Papers: "Flora: Low-Rank Adapters Are Secretly Gradient Compressors", arXiv 2402.03293; APOLLO, arXiv 2412.05270.

    Example:
        >>> import torch
        >>> held = {}
        >>> Random(rank=2).refresh(torch.ones(3, 3), held, step=5, place=1), sorted(held)
        (True, ['drawn', 'due', 'on_right'])
    """

    def basis(self, matrix: Tensor, old: Tensor | None, draw: torch.Generator) -> Tensor:
        """Return fresh directions."""
        rows = torch.randn(self.rank, matrix.shape[1], generator=draw, device=matrix.device)
        return rows.div_(self.rank**0.5)

    def choose(self, matrix: Tensor, held: Held, draw: torch.Generator, dtype: torch.dtype) -> None:
        """Keep the seed of a draw."""
        held.update({f"on_{side}": 1 for side in self.sides(tuple(matrix.shape))})
        held["drawn"] = draw.initial_seed()

    def directions(self, held: Held, side: Side, like: Tensor) -> Tensor | None:
        """Return the directions that the kept seed draws."""
        if f"on_{side}" not in held:
            return None
        draw = torch.Generator(like.device).manual_seed(held["drawn"] + (side == "left"))
        turned = like if side == "right" else like.mT
        return self.basis(turned, None, draw).to(like.dtype)


def sharpened(matrix: Tensor, begun: Tensor, iterations: int, rank: int) -> Tensor:
    """Return directions near the leading right singular vectors of a matrix, in their order, signs upright.

    The last multiplication also says what the matrix is on the directions found: with Y = G V and Z = G^T Y, whose
    columns are those directions, the singular vectors of (Y's columns made orthogonal)^T G are Z's own, turned by a
    small matrix, as Y^T Y = V^T Z. No further product with G is needed.

    Args:
        matrix: G, fp32 [rows, cols].
        begun: V, [cols, r or more], whatever they begin from; orthonormal if ``iterations`` is 0.
        iterations: multiplications with the matrix and its transpose.
        rank: r.
    """
    found = begun
    for left in range(iterations, 0, -1):
        after = matrix.T @ (matrix @ found)
        basis, upper = torch.linalg.qr(after)
        if left == 1:
            return upright((basis @ _turn(found.T @ after, upper)[:, :rank]).T.contiguous())
        found = basis
    return turned(found, matrix @ found, rank)


def _turn(gram: Tensor, upper: Tensor) -> Tensor:
    """Return the left singular vectors of R L^-T, strongest first, L L^T being nearly the Gram matrix.

    fp32 knows neither a direction's share outside of the others below some size, nor one far weaker than the strongest:
    in units of each one's length, a thousandth is added to each.
    """
    wide = (gram + gram.T).double() / 2
    energy = wide.diagonal()
    lengths = energy.clamp(min=float(energy.max()) * _WEAK or 1.0).sqrt()
    alike = wide / lengths / lengths[:, None]
    lower = torch.linalg.cholesky(alike + _ALONE * torch.eye(len(alike), dtype=alike.dtype, device=alike.device))
    inside = torch.linalg.solve_triangular(lower, (upper.double() / lengths).T, upper=False)
    turn: Tensor = torch.linalg.eigh((inside.T @ inside).to(upper.dtype)).eigenvectors.flip(1)
    return turn


def turned(found: Tensor, inside: Tensor, rank: int) -> Tensor:
    """Return the leading right singular vectors of a matrix within some directions, in their order, signs upright.

    Args:
        found: the directions, orthonormal columns [cols, d].
        inside: the matrix times them, [rows, d].
        rank: r, how many are wanted.
    """
    turn = torch.linalg.eigh((inside.T @ inside).double()).eigenvectors.flip(1).to(found.dtype)
    return upright((found @ turn[:, :rank]).T.contiguous())

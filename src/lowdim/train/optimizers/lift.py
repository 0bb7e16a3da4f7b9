"""LIFT: the few weights of every matrix that stand out once its rank is reduced."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from lowdim.core.errors import LowdimError, RecipeError
from lowdim.core.lazy import torch
from lowdim.core.settings import Moot, count, within
from lowdim.core.topk import keep_top
from lowdim.train.optimizers.base import OptimizerRule, matrices
from lowdim.train.optimizers.projectors import SVD, Krylov

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lowdim.train.optimizers.entries import Entries
    from lowdim.train.optimizers.projector import Projector


@dataclass(frozen=True)
class LIFT(OptimizerRule):
    """Trains the K entries of every matrix W [m, n] that are largest in W', the best approximation of W of rank r.

        W' = U_r S_r V_r^T,   K = (m + n) budget,   index = top-K of |W'| among the entries of W that are not zero

    AdamW takes steps on these entries, with vectors of length K as its memory; norms, biases, embeddings and the head
    are frozen. The entries are chosen anew every so many steps; those that stay keep their means (`Entries`). W' comes
    from random directions with a fixed seed and products with W (`Krylov`), or from the full decomposition.

    Paper: "LIFT the Veil for the Truth: Principal Weights Emerge after Rank Reduction for Reasoning-Focused Supervised
    Fine-Tuning", ICML 2025, arXiv 2506.00772.

    Args:
        lr: learning rate at its peak; a schedule scales it.
        weight_decay: decoupled, of the chosen entries.
        beta1: how long Adam's mean of the gradient remembers.
        beta2: how long its mean of the square does.
        eps: added to the root of that mean.
        rank: r, at most the smaller side of every matrix; the paper has 32 to 128.
        budget: the rank of a LoRA adapter with as many numbers; the paper has 128 for widths of 2048 and more.
        every: steps of a matrix between two choices; the first is before the first step.
        mask: "principal" is the method. The others are its rivals: "magnitude" takes the largest |W|, "random" any K
            entries, "smallest" the smallest |W'|, as the code released with the paper does.
        decomposition: "randomised" multiplies with a few random directions; "svd" is exact.
        seed: of what is drawn.

    Example:
        >>> import torch
        >>> weight = torch.tensor([[10.0, 0.0, 1.0], [9.0, 0.5, 1.2], [0.0, 0.1, 6.0]])
        >>> torch.where(abs(LIFT(rank=1).reduced(weight, torch.Generator())) > 0.9, weight, 0.0).tolist()[0]
        [10.0, 0.0, 1.0]
    """

    alone: ClassVar[bool] = False
    chooses: ClassVar[bool] = True
    moot: ClassVar[Moot] = dict.fromkeys(("rank", "decomposition"), ("mask", ("magnitude", "random")))

    lr: float = within(2e-4, above=0)
    rank: int = count(32)
    budget: int = count(16)
    every: int = count(400)
    mask: Literal["principal", "magnitude", "random", "smallest"] = "principal"
    decomposition: Literal["randomised", "svd"] = "randomised"
    seed: int = 0

    def build(self, model: nn.Module) -> Entries:
        """Return the optimizer of a model's matrices, those of experts too, and freeze all other weights.

        Raises:
            RecipeError: a matrix is too small for the rank or the budget, or has fewer weights that are not zero.
            LowdimError: there is no matrix.
        """
        from lowdim.models.structure.selection import inventory
        from lowdim.train.optimizers.entries import Entries

        found = [*matrices(model), *(w.parameter for w in inventory(model) if w.stacked and w.parameter.requires_grad)]
        if not found:
            raise LowdimError(f"{type(model).__name__} has no matrix that is trained: there is nothing to choose from")
        betas, own = (self.beta1, self.beta2), {id(p) for p in found}
        for p in found:
            for matrix in p.detach().view(-1, *p.shape[-2:]):
                self._check_kept(matrix)
        optimizer = Entries(found, self, lr=self.lr, betas=betas, eps=self.eps, weight_decay=self.weight_decay)
        for p in model.parameters():
            p.requires_grad_(id(p) in own)
        return optimizer

    def entries(self, shape: tuple[int, ...]) -> int:
        """Return K, how many entries of a matrix are trained.

        Raises:
            RecipeError: the matrix has fewer, or a side smaller than the rank.

        Example:
            >>> LIFT(budget=2).entries((32, 64))
            192
        """
        size, wanted = shape[0] * shape[1], sum(shape) * self.budget
        if wanted > size:
            raise RecipeError(
                f"budget={self.budget} asks for {wanted:,} entries of a matrix of {shape[0]} x {shape[1]}, which has "
                f"{size:,}. Take at most budget={size // sum(shape)}."
            )
        if self.rank > min(shape) and self.mask in ("principal", "smallest"):
            raise RecipeError(
                f"rank={self.rank} exceeds the smaller side of a matrix of {shape[0]} x {shape[1]}. Take at most "
                f"rank={min(shape)}."
            )
        return wanted

    def _check_kept(self, matrix: Tensor) -> int:
        """Return K, of a matrix with at least as many entries that are not zero."""
        shape = (matrix.shape[0], matrix.shape[1])
        wanted, kept = self.entries(shape), int(torch.count_nonzero(matrix))
        if wanted > kept:
            raise RecipeError(
                f"budget={self.budget} asks for {wanted:,} entries of a matrix of {shape[0]} x {shape[1]}, of which "
                f"{kept:,} are not zero. Take at most budget={kept // sum(shape)}, or freeze what is all zero."
            )
        return wanted

    def reduced(self, matrix: Tensor, draw: torch.Generator) -> Tensor:
        """Return W', the approximation of a matrix of rank r, fp32."""
        kinds: dict[str, type[Projector]] = {"randomised": Krylov, "svd": SVD}
        rule = kinds[self.decomposition](rank=self.rank)
        if matrix.shape[0] >= matrix.shape[1]:
            right = rule.basis(matrix, None, draw)
            return (matrix @ right.T) @ right
        left = rule.basis(matrix.T, None, draw)
        return left.T @ (left @ matrix)

    def chosen(self, matrix: Tensor, draw: torch.Generator) -> Tensor:
        """Return the flat places of K entries of a matrix, int64 ``[K]``, ascending.

        Example:
            >>> import torch
            >>> weight = torch.tensor([[10.0, 0.0, 1.0], [9.0, 0.5, 1.2], [0.0, 0.1, 6.0]])
            >>> LIFT(budget=1, mask="magnitude").chosen(weight, torch.Generator()).tolist()
            [0, 2, 3, 4, 5, 8]
        """
        wanted = self._check_kept(matrix)
        if self.mask == "random":
            scores = torch.rand(matrix.shape, generator=draw, device=matrix.device)
        else:
            scores = self.reduced(matrix, draw).abs_() if self.mask != "magnitude" else matrix.abs()
        scores = scores.neg_() if self.mask == "smallest" else scores
        scores.masked_fill_(matrix == 0, -torch.inf)
        return keep_top(scores, wanted).view(-1).nonzero().view(-1)

    def bytes_of(self, weight: torch.Tensor, matrix: bool) -> tuple[int, int]:
        """Return the bytes of a weight and of its state: places, two means, fp32 copies of narrower entries."""
        if not matrix:
            return weight.nbytes, 0
        vectors = 3 if weight.itemsize >= 4 else 4
        return weight.nbytes, 4 * vectors * min(sum(weight.shape) * self.budget, weight.numel())

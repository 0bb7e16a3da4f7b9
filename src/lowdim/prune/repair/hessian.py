"""The Hessian of a layer's squared output error, damped until it can be factored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowdim.core.errors import NumericalError
from lowdim.core.lazy import torch
from lowdim.core.score.obs import damped_cholesky

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Hessian:
    """``H = X X^T / tokens + damping * mean(diag) * I`` of one layer input, and the factor of its inverse.

    Attributes:
        matrix: ``H``, fp32 ``[in, in]``, dead columns given a diagonal of 1.
        inverse_factor: upper triangular ``U`` with ``H^-1 = U^T U``; ``U_jj^2`` is the leading entry of the inverse of
            ``H`` restricted to columns ``j, j+1, ...``.
        dead: bool ``[in]``, inputs that are zero on every token.
        damping: the share of the mean diagonal that was needed.
        note: what was done beyond the asked damping; empty if nothing.
    """

    matrix: Tensor
    inverse_factor: Tensor
    dead: Tensor
    damping: float
    note: str


def factor(gram: Tensor, tokens: int, damping: float, name: str) -> Hessian:
    """Damp and factor the Hessian of one layer input.

    With the order of the columns reversed, Cholesky gives ``H = R R^T`` for an upper triangular ``R``, and
    ``U = R^-1``: one factorisation and one triangular inverse, where inverting ``H`` and factoring the inverse takes
    four times as much.

    Args:
        gram: ``X X^T`` summed over the tokens, fp32 ``[in, in]``.
        tokens: number of tokens summed over.
        damping: share of the mean diagonal added to the diagonal (``percdamp``); raised where that is not enough.
        name: the layer, for the error.

    Raises:
        NumericalError: the matrix holds NaN or Inf, or no damping makes it positive definite.

    Example:
        >>> import torch
        >>> h = factor(torch.tensor([[2.0, 1.0], [1.0, 2.0]]), 1, 1e-9, "layer")
        >>> h.inverse_factor
        tensor([[ 0.8165, -0.4082],
                [ 0.0000,  0.7071]])

    Paper: SparseGPT, 2023, arXiv 2301.00774.
    """
    matrix = gram / tokens
    dead = matrix.diagonal() == 0
    mean = matrix.diagonal().double().mean()
    try:
        lower, used = damped_cholesky(matrix.flip(0, 1), damping)
    except NumericalError as error:
        raise NumericalError(
            f"{name!r}: {error}. Use more calibration samples, a larger repair.damping, compute='float32', or method "
            "'wanda'."
        ) from error
    matrix.diagonal().add_((used * mean).to(matrix.dtype))
    matrix.diagonal()[dead] = 1.0
    upper = lower.flip(0, 1)
    eye = torch.eye(len(upper), dtype=upper.dtype, device=upper.device)
    inverse = torch.linalg.solve_triangular(upper, eye, upper=True).to(matrix.dtype)
    note = "" if used == damping else f"damping raised from {damping:g} to {used:g}"
    if lower.dtype == torch.float64:
        note = ", ".join(filter(None, [note, "factored in fp64"]))
    return Hessian(matrix, inverse, dead, used, note)

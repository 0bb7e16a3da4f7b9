"""Least squares over a fixed support, for every row of a layer at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowdim.core.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


def refit(target: Tensor, mask: Tensor, hessian: Tensor, start: Tensor, iterations: int, tolerance: float) -> Tensor:
    """Return the weights on the mask's support that minimise ``tr((V - W) H (V - W)^T)``.

    Each row is the linear system ``H_SS v_S = b_S`` over its kept columns ``S``. All rows run conjugate gradients side
    by side with the mask as a projection and the diagonal of ``H`` as preconditioner, so one iteration is one matrix
    product and nothing of size ``|S| x |S|`` is formed.

    Args:
        target: ``b = W H`` of the dense layer, fp32 ``[rows, in]``.
        mask: kept entries, bool ``[rows, in]``.
        hessian: ``H``, fp32 ``[in, in]``, positive definite.
        start: first guess, ``[rows, in]``; entries off the mask are ignored.
        iterations: upper limit of iterations.
        tolerance: stop when every row's preconditioned residual has shrunk by this factor relative to its target.

    Returns:
        fp32 ``[rows, in]``, zero off the mask.

    Example:
        >>> import torch
        >>> h = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
        >>> refit(torch.tensor([[1.0, 3.0]]) @ h, torch.tensor([[False, True]]), h, torch.zeros(1, 2), 9, 1e-7)
        tensor([[0.0000, 3.5000]])
    """
    keep = mask.to(target.dtype)
    scale = hessian.diagonal().reciprocal()
    solution = start * keep
    residual = (target - solution @ hessian) * keep
    direction = residual * scale
    power = (residual * direction).sum(1)
    goal = tolerance**2 * ((target * keep).square() * scale).sum(1)
    for _ in range(iterations):
        active = power > goal
        if not bool(active.any()):
            break
        image = (direction @ hessian) * keep
        curvature = (direction * image).sum(1)
        length = torch.where(active & (curvature > 0), power / curvature, 0.0)[:, None]
        solution.addcmul_(length, direction)
        residual.addcmul_(length, image, value=-1)
        scaled = residual * scale
        renewed = (residual * scaled).sum(1)
        direction.mul_((renewed / power.clamp_min(torch.finfo(power.dtype).tiny))[:, None]).add_(scaled)
        power = renewed
    return solution

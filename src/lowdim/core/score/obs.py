"""Optimal brain surgeon: what removing a weight costs once the others have made up for it."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lowdim.core.errors import NumericalError
from lowdim.core.lazy import torch
from lowdim.core.score.base import ColumnScore
from lowdim.core.settings import share

if TYPE_CHECKING:
    from torch import Tensor

    from lowdim.core.statistics import InputStatistics

_ATTEMPTS = 5


@dataclass(frozen=True)
class OBS(ColumnScore):
    """S_ij = |W_ij| / sqrt([H^-1]_jj), the root of the classical saliency, compared per block of 128 columns.

    H = X^T X / tokens + damping * mean(diag) * I. S^2 is the least growth of the layer's squared output error when
    weight ij is removed and the rest of its row is refitted. A column whose input is always zero scores zero.

    Args:
        damping: share of the mean diagonal added to the diagonal.

    Paper: "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot", arXiv 2301.00774.

    Example:
        >>> import torch
        >>> from lowdim.core.statistics import InputStatistics
        >>> stats = InputStatistics(2, OBS.needs)
        >>> stats.add(torch.tensor([[2.0, 0.0], [0.0, 2.0]]))
        >>> OBS(damping=0.0).column_scale(stats)
        tensor([1.4142, 1.4142])
    """

    needs: ClassVar[frozenset[str]] = frozenset({"gram"})

    damping: float = share(0.01, "a share of the mean diagonal")

    @property
    def default_group(self) -> str:
        """Blocks of columns, over all rows."""
        return "column-block"

    @property
    def sweep_damping(self) -> float | None:
        """A sweep compensates what it prunes, so it draws this score's mask best, from its own Hessian."""
        return self.damping

    def column_scale(self, stats: InputStatistics | None) -> Tensor:
        """Return 1 / sqrt(diag(H^-1)), fp32 [in].

        Raises:
            NumericalError: H could not be factorised.
        """
        stats = self._required(stats)
        hessian = stats.gram / max(1, stats.tokens)
        dead = hessian.diagonal() == 0
        factor, used = damped_cholesky(hessian, self.damping)
        if used != self.damping:
            warnings.warn(f"OBS needed damping {used:g} instead of {self.damping:g}", stacklevel=2)
        eye = torch.eye(len(factor), dtype=factor.dtype, device=factor.device)
        inverse: Tensor = torch.linalg.solve_triangular(factor, eye, upper=False)
        return inverse.square_().sum(0).rsqrt_().float().masked_fill_(dead, 0.0)


def damped_cholesky(hessian: Tensor, damping: float) -> tuple[Tensor, float]:
    """Factor H + damping * mean(diag H) * I, with more damping and then more precision where it fails.

    Columns with a zero diagonal are given a one there. Damping grows tenfold from its start, four times in
    fp32, then again in fp64.

    Args:
        hessian: symmetric [n, n]; not changed.
        damping: share of the mean diagonal to start with.

    Returns:
        The lower factor, fp32 or fp64, and the damping that succeeded.

    Raises:
        NumericalError: H holds NaN or Inf, or no damping helped.

    Example:
        >>> import torch
        >>> factor, used = damped_cholesky(torch.tensor([[4.0, 0.0], [0.0, 0.0]]), 0.0)
        >>> factor.diagonal(), used
        (tensor([2., 1.]), 0.0)
    """
    if not bool(hessian.isfinite().all()):
        raise NumericalError("the Hessian holds NaN or Inf: the calibration inputs overflowed")
    diagonal = hessian.diagonal()
    dead = diagonal == 0
    step = float(diagonal.double().mean())
    for dtype in (torch.float32, torch.float64):
        used = damping
        for _ in range(_ATTEMPTS):
            damped = hessian.to(dtype, copy=True)
            damped.diagonal().add_(used * step)
            damped.diagonal()[dead] = 1.0
            factor, failed = torch.linalg.cholesky_ex(damped)
            if not int(failed):
                return factor, used
            used = max(used * 10, 1e-6)
    raise NumericalError(f"the Hessian is not positive definite even with damping {used / 10:g} in fp64")

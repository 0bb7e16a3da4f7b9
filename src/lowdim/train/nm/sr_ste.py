"""SR-STE: 2:4 weights through a straight-through estimator, with decay of what is pruned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from lowdim.core.pattern import NM
from lowdim.core.settings import within
from lowdim.train.nm.base import FromScratch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class SRSTE(FromScratch):
    """2:4 along the inputs, drawn anew at every step, and decay of what is pruned, on the weights themselves.

    After the optimizer's step W <- W - lr * ``decay`` * (1 - M) * W. With ``decay`` 0 it is the plain straight-through
    estimator (STE).

    Paper: "Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch", ICLR 2021, arXiv 2102.04010.

    Args:
        every: optimizer steps between two choices of masks.
        decay: lambda.
        tail: share of the steps, at the end, that are dense.
        mvue: sparsify gradients along the tokens, as in FST.

    Example:
        >>> import torch
        >>> SRSTE().mask(torch.tensor([[4.0, -3.0, 1.0, 0.5]])).tolist()
        [[True, True, False, False]]
    """

    decays: ClassVar[Literal["gradient", "weight"]] = "weight"
    decay: float = within(2e-4, least=0)

    def mask(self, weight: Tensor) -> Tensor:
        """Return the two largest of every four inputs."""
        return NM(2, 4).mask(weight.detach().abs().float(), weight.numel() // 2)

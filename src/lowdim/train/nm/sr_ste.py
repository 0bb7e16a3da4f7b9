"""SR-STE: N:M weights through a straight-through estimator, with decay of what is pruned."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from lowdim.core.errors import RecipeError
from lowdim.core.pattern import NM
from lowdim.core.settings import within
from lowdim.train.nm.base import FromScratch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class SRSTE(FromScratch):
    """N:M along the inputs, drawn anew at every step, and decay of what is pruned, on the weights themselves.

    After the optimizer's step W <- W - lr * ``decay`` * (1 - M) * W. With ``decay`` 0 it is the plain straight-through
    estimator (STE).

    Paper: "Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch", ICLR 2021, arXiv 2102.04010.

    Args:
        every: optimizer steps between two choices of masks.
        decay: lambda.
        tail: share of the steps, at the end, that are dense.
        mvue: sparsify gradients along the tokens, as in FST.
        pattern: N:M, N of every M inputs are kept; tensor cores run 2:4, and masks on any device all others.

    Example:
        >>> import torch
        >>> weight = torch.tensor([[4.0, -3.0, 1.0, 0.5]])
        >>> SRSTE().mask(weight).tolist(), SRSTE(pattern="1:4").mask(weight).tolist()
        ([[True, True, False, False]], [[True, False, False, False]])
    """

    decays: ClassVar[Literal["gradient", "weight"]] = "weight"
    decay: float = within(2e-4, least=0)
    pattern: str = "2:4"

    def __post_init__(self) -> None:
        """Refuse a pattern that is not N:M, or prunes nothing.

        Raises:
            RecipeError: see above.
        """
        super().__post_init__()
        if not re.fullmatch(r"\d+:\d+", self.pattern) or self.groups.sparsity == 0:
            raise RecipeError(f"pattern must be N:M with N below M, such as 2:4 or 1:8; got {self.pattern!r}.")

    @property
    def groups(self) -> NM:
        """The pattern."""
        return NM(*map(int, self.pattern.split(":")))

    def mask(self, weight: Tensor) -> Tensor:
        """Return the N largest of every M inputs."""
        kept = weight.numel() // self.groups.group * self.groups.keep
        return self.groups.mask(weight.detach().abs().float(), kept)

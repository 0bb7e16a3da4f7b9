"""IPO: a preference pulls two answers a fixed way apart, and no further."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowdim.train.preference.base import Strict

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class IPO(Strict):
    """(h - 1 / (2 beta))^2, h the log-ratio of a pair (see `Preference`).

    A pair that everybody agrees on does not drive the ratio to infinity, as under `DPO`.

    Paper: "A General Theoretical Paradigm to Understand Learning from Human Preferences", 2023, arXiv 2310.12036, whose
    tau is beta here.

    Example:
        >>> import torch
        >>> IPO(beta=0.5).losses(torch.tensor([0.0, 1.0, 3.0]), torch.zeros(3).bool())
        tensor([1., 0., 4.])
    """

    def losses(self, ratio: Tensor, tie: Tensor) -> Tensor:
        """Return the loss of every pair."""
        return (ratio - 1 / (2 * self.beta)).square()

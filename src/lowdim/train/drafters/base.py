"""What every objective of a draft model answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lowdim.core.lazy import torch
from lowdim.core.settings import Settings

if TYPE_CHECKING:
    from lowdim.train.objectives.divergence import Side
    from lowdim.train.objectives.rows import Scratch


@dataclass(frozen=True, eq=False)
class Answers:
    """What networks say at the n tokens of a batch that count, each over the same V words.

    Attributes:
        draft: the network that is trained.
        tokens: the tokens that follow, int64 ``[n]``.
        target: the network that is drafted for; None if the objective does not ask for it.
        reference: a network trained before, as far as the draft could come; None likewise.
    """

    draft: Side
    tokens: torch.Tensor
    target: Side | None = None
    reference: Side | None = None


@dataclass(frozen=True)
class DraftObjective(Settings, ABC):
    """What a draft model is trained for.

    Attributes:
        asks: the networks beside the draft that `loss` needs: "target", "reference" or both.
    """

    asks: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def loss(self, said: Answers, scratch: Scratch | None = None) -> torch.Tensor:
        """Return a batch's loss, a mean over tokens; its gradient goes to the draft alone."""

    def reference(self) -> DraftObjective | None:
        """Return what the reference is trained for, from the same start; None where no reference is asked."""
        return None

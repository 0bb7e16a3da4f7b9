"""What every score answers, and what it is told of a layer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lowdim.core.choices import Word

if TYPE_CHECKING:
    from torch import Tensor

    from lowdim.core.statistics import InputStatistics

GRADIENT = "gradient"
"""Named among a score's ``needs``: the gradient of the loss with respect to the weight."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """What was seen of a layer on the calibration tokens.

    Attributes:
        inputs: sums over its inputs.
        gradient: of the mean next-token loss with respect to its weight, fp32 [out, in].
    """

    inputs: InputStatistics | None = None
    gradient: Tensor | None = None


@dataclass(frozen=True)
class Score(Word, ABC):
    """One number per weight: how much it is worth.

    Attributes:
        needs: what the scores are made from besides the weights: kinds of `InputStatistics`, and "gradient".
    """

    needs: ClassVar[frozenset[str]] = frozenset()

    @property
    @abstractmethod
    def default_group(self) -> str:
        """The comparison group of the paper: "row", "matrix" or "column-block"."""

    @property
    def in_own_group(self) -> bool:
        """Whether its numbers mean something in its own comparison group alone."""
        return False

    @property
    def sweep_damping(self) -> float | None:
        """Damping of the Hessian by which a compensating sweep draws its masks; ``None`` where no sweep can."""
        return None

    @abstractmethod
    def scores(self, weight: Tensor, evidence: Evidence) -> Tensor:
        """Return the scores, at least fp32, [out, in], none negative.

        Args:
            weight: [out, in].
            evidence: what the score ``needs``.

        Raises:
            ValueError: something it needs was not collected.
        """

    def compared(self, evidence: Evidence) -> Callable[[Tensor], tuple[Tensor, Tensor | None]]:
        """Return a function from the weight to what is compared between layers: ``|matrix| * scale``.

        The matrix is [out, in] and the scale [in], or ``None`` where every column counts the same. The function may be
        called again and again; it is all that a scan of the model remembers of the evidence.
        """
        return lambda weight: (self.scores(weight, evidence), None)


@dataclass(frozen=True)
class ColumnScore(Score):
    """A score of the form S_ij = |W_ij| * scale_j, with a scale per input column."""

    @abstractmethod
    def column_scale(self, stats: InputStatistics | None) -> Tensor | None:
        """Return the scale, fp32 [in], or None where every column counts the same.

        Raises:
            ValueError: the score needs statistics and got none.
        """

    def scaled(self, weight: Tensor, scale: Tensor | None) -> Tensor:
        """Return the scores of a weight [out, in] for what ``column_scale`` returned, [in]."""
        magnitude = weight.detach().float().abs()
        return magnitude if scale is None else magnitude.mul_(scale.to(magnitude.device))

    def scores(self, weight: Tensor, evidence: Evidence) -> Tensor:
        """Return ``|W| * scale``, [out, in]."""
        return self.scaled(weight, self.column_scale(evidence.inputs))

    def compared(self, evidence: Evidence) -> Callable[[Tensor], tuple[Tensor, Tensor | None]]:
        """Return the weight and the scale as they are."""
        scale = self.column_scale(evidence.inputs)
        return lambda weight: (weight, scale)

    def _required(self, stats: InputStatistics | None) -> InputStatistics:
        if stats is None:
            raise ValueError(f"{type(self).__name__} needs statistics of the inputs ({', '.join(sorted(self.needs))})")
        return stats


@dataclass(frozen=True)
class GradientScore(Score):
    """A score made from each weight and the gradient of the loss with respect to it, compared over the whole layer."""

    needs: ClassVar[frozenset[str]] = frozenset({GRADIENT})

    @property
    def default_group(self) -> str:
        """The whole matrix."""
        return "matrix"

    @abstractmethod
    def worth(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """Return the scores for a weight and its gradient, both fp32 [out, in]."""

    def scores(self, weight: Tensor, evidence: Evidence) -> Tensor:
        """Return `worth` of the weight and the gradient that was collected."""
        if evidence.gradient is None:
            raise ValueError(f"{type(self).__name__} needs the gradient of the loss")
        return self.worth(weight.detach().float(), evidence.gradient.to(weight.device))

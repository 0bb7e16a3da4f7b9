"""What every pattern answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lowdim.core.budget import apportion
from lowdim.core.choices import Choices, Word
from lowdim.core.errors import PatternError, RecipeError, clash
from lowdim.core.lazy import torch
from lowdim.core.pattern.units import Shape, Units
from lowdim.core.settings import check_sparsity

if TYPE_CHECKING:
    from torch import Tensor

    from lowdim.core.allocation import Allocation, AllocationResult, LayerInfo, Scan


@dataclass(frozen=True)
class Pattern(Word, ABC):
    """Which weights stand or fall together, and which masks of a layer are legal.

    Attributes:
        joint: whether the masks of a whole decoder block are chosen at once, by ``joint_masks``; such a pattern has no
            mask for a single layer.
        runs_on: what multiplies such masks faster than dense weights, as a clause.
    """

    joint: ClassVar[bool] = False
    runs_on: ClassVar[str] = "lowdim's CPU kernels, in packed checkpoints and CSR layers, run it from some sparsity on"

    @property
    def swept(self) -> bool:
        """Whether a sweep can draw the mask range by range, from the weights that it has compensated so far."""
        return False

    @property
    def swap_span(self) -> int | None:
        """Columns within which a weight may be swapped for another of its row: 0 for any, ``None`` for none."""
        return None

    @property
    def compares(self) -> str:
        """The group in which single weights compete, such as "row"; empty for patterns of larger units."""
        return ""

    @property
    def own_block(self) -> int | None:
        """Columns per block, where another number than the usual was asked for."""
        return None

    def check(self, recipe: Choices) -> None:
        """Refuse what the pattern cannot be combined with."""
        if self.joint and recipe.sequential == "true":
            raise clash(
                "sequential=true",
                f"pattern={self}",
                "the masks of a whole block are chosen at once",
                "Choose sequential=block",
            )

    def check_recipe(self, sparsity: float | None) -> float:
        """Return the target sparsity a recipe means with this pattern.

        Raises:
            RecipeError: the sparsity is missing, out of range, or contradicts the pattern.
        """
        if sparsity is None:
            raise RecipeError(f"pattern {self} needs a sparsity, such as 0.5 (the share of zeros)")
        return check_sparsity(sparsity)

    def resolve(self, group: str, block: int | None = None) -> Pattern:
        """Return the pattern with every open choice made; most patterns leave nothing open.

        Args:
            group: the comparison group.
            block: columns per block, for a repair that masks and compensates them together.
        """
        return self

    def allocate(
        self, allocation: Allocation, layers: Sequence[LayerInfo], sparsity: float, scan: Scan
    ) -> AllocationResult:
        """Return the sparsities that an allocation gives layers of this pattern."""
        return allocation.allocate(layers, sparsity, scan)

    def keeps(self, sizes: Sequence[int], sparsities: Sequence[float]) -> list[int]:
        """Return how many weights each layer keeps; all together meet the sparsities to one unit.

        Args:
            sizes: weights per layer.
            sparsities: share of zeros per layer.
        """
        unit = 1 if self.joint else self.unit_size
        units = [size // unit for size in sizes]
        zeros = [share * count for share, count in zip(sparsities, units, strict=True)]
        pruned = apportion(zeros, round(sum(zeros)), units)
        return [(count - gone) * unit for count, gone in zip(units, pruned, strict=True)]

    def sweep_width(self, block: int, drawn: bool) -> int:
        """Return how many columns a sweep visits with one mask: ``block`` unless the pattern asks for another number.

        Args:
            block: what the repair would take.
            drawn: whether the mask is there already.
        """
        return block

    def sweep_mask(self, scores: Tensor, keep: int) -> Tensor:
        """Draw the mask of one range of a sweep; see ``mask``."""
        return self.mask(scores, keep)

    def sweep_keeps(self, sizes: Sequence[int], keep: int) -> list[int]:
        """Return how many weights each range of a sweep keeps of its ``sizes``, ``keep`` in all."""
        unit = self.unit_size
        kept = apportion([float(size) for size in sizes], keep // unit, [size // unit for size in sizes])
        return [count * unit for count in kept]

    def check_block(self, names: Sequence[str], config: Any) -> None:
        """Refuse a decoder block that a joint pattern cannot read.

        Args:
            names: the block's layers.
            config: the model's configuration.

        Raises:
            PatternError: names what is missing, and the remedy.
        """
        return

    def joint_masks(self, scores: Mapping[str, Tensor], config: Any, keeps: Mapping[str, int]) -> dict[str, Tensor]:
        """Draw the masks of all layers of one decoder block, for a ``joint`` pattern.

        Args:
            scores: [out, in] per layer.
            config: the model's configuration.
            keeps: weights to keep per layer.
        """
        raise PatternError(f"pattern {self} draws the mask of one layer, not those of a whole decoder block")

    def at(self, sparsity: float) -> Pattern:
        """Return the pattern for a layer that was allocated ``sparsity``."""
        return self

    @abstractmethod
    def check_shape(self, name: str, rows: int, cols: int) -> None:
        """Refuse a layer the pattern cannot cover.

        Raises:
            PatternError: names the layer, its size and the remedy.
        """

    @property
    @abstractmethod
    def unit_size(self) -> int:
        """Weights in the smallest change of a mask's count."""

    @property
    def groups_of(self) -> int:
        """Neighbouring inputs that keep a number of their own, as in N:M; 0 where there are no such groups."""
        return 0

    def units(self, name: str, shape: Shape) -> Units:
        """Cut a weight into units for training; a pattern that does not override this can only prune.

        Args:
            name: of the weight, for messages.
            shape: [out, in, kernel...]; `Turned` serves layers that hold it as [in, out, kernel...].

        Raises:
            RecipeError: the pattern cannot be trained.
            PatternError: the weight does not fall into whole units.
        """
        raise RecipeError(
            f"pattern {str(self)!r} cannot be trained; choose unstructured, fan-in, N:M, ROWSxCOLS or gates:N"
        )

    def quota(self, units: Units, kept: int) -> Tensor | None:
        """Return how many units each group keeps, int64 [groups]; None where units do not fall into groups.

        Groups share ``kept`` weights, the same number each (at least one), rounded.
        """
        if units.groups == 1:
            return None
        room = units.size // units.groups
        return torch.full((units.groups,), min(room, max(1, round(kept / units.groups))))

    @abstractmethod
    def mask(self, scores: Tensor, keep: int) -> Tensor:
        """Keep the best units of one layer.

        Args:
            scores: [rows, cols], larger is more worth keeping.
            keep: weights to keep, rounded to whole units.

        Returns:
            bool [rows, cols], True = kept, with exactly that many True.

        Raises:
            NumericalError: a score is NaN.
        """

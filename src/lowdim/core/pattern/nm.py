"""N:M: of every M neighbouring inputs, N are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, ClassVar

from lowdim.core.choices import Choices
from lowdim.core.errors import PatternError, RecipeError, clash
from lowdim.core.lazy import torch
from lowdim.core.pattern.base import Pattern
from lowdim.core.pattern.units import Entries, Shape, Units, whole
from lowdim.core.topk import keep_top_rows

if TYPE_CHECKING:
    from torch import Tensor

    from lowdim.core.allocation import Allocation, AllocationResult, LayerInfo, Scan


@dataclass(frozen=True)
class NM(Pattern):
    """Keep ``keep`` of every ``group`` neighbouring inputs of each row, aligned to multiples of ``group``.

    The sparsity is 1 - keep / group. Both numbers count as hardware does: 2:4 keeps two of four (some
    research code counts the removed ones first).

    Paper: "Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch", arXiv 2102.04010.

    Example:
        >>> import torch
        >>> NM(2, 4).mask(torch.tensor([[4.0, 2.0, 1.0, 0.4], [0.4, 0.3, 10.0, 0.02]]), 4).int()
        tensor([[1, 1, 0, 0],
                [1, 0, 1, 0]], dtype=torch.int32)
    """

    runs_on: ClassVar[str] = f"{Pattern.runs_on}; the sparse tensor cores of GPUs run 2:4, and no other"

    keep: int = 2
    group: int = 4

    def __post_init__(self) -> None:
        if self.keep < 1:
            raise RecipeError(f"pattern {self} keeps nothing: in N:M, N is the number kept, at least 1")
        if self.keep > self.group:
            raise RecipeError(
                f"pattern {self} keeps {self.keep} of {self.group}: in N:M, N of every M weights are kept; "
                f"did you mean {self.group}:{self.keep}?"
            )

    def __str__(self) -> str:
        return f"{self.keep}:{self.group}"

    @property
    def sparsity(self) -> float:
        """The share of zeros, 1 - keep / group."""
        return 1.0 - self.keep / self.group

    @property
    def unit_size(self) -> int:
        """One group: no smaller change of the count is legal."""
        return self.group

    @property
    def swept(self) -> bool:
        """Groups can be drawn one after another."""
        return True

    @property
    def swap_span(self) -> int | None:
        """Swaps stay inside a group."""
        return self.group

    def check(self, recipe: Choices) -> None:
        """Refuse an allocation whose sparsities are no whole patterns."""
        super().check(recipe)
        if not recipe.allocation.fits_groups:
            raise clash(
                f"allocation={recipe.word('allocation')}",
                f"pattern={self}",
                "every layer keeps the same number of each group, so there is no budget to share out",
                "Choose allocation=uniform, allocation=owl (which mixes N per layer), or pattern=unstructured",
            )

    def allocate(
        self, allocation: Allocation, layers: Sequence[LayerInfo], sparsity: float, scan: Scan
    ) -> AllocationResult:
        """Return sparsities that are whole patterns of the same group."""
        return allocation.allocate_nm(layers, self.keep, self.group, scan)

    def keeps(self, sizes: Sequence[int], sparsities: Sequence[float]) -> list[int]:
        """Return the one legal count of each layer."""
        return [size // self.group * self.at(share).keep for size, share in zip(sizes, sparsities, strict=True)]

    def sweep_width(self, block: int, drawn: bool) -> int:
        """Return one group: its mask is drawn once everything before it has been compensated."""
        return block if drawn else self.group

    def sweep_keeps(self, sizes: Sequence[int], keep: int) -> list[int]:
        """Return the one legal count of each range."""
        return [size // self.group * self.keep for size in sizes]

    def check_recipe(self, sparsity: float | None) -> float:
        """Return the pattern's own sparsity; one given beside it must agree to 0.001."""
        if sparsity is None or abs(sparsity - self.sparsity) <= 1e-3:
            return self.sparsity
        wanted = super().check_recipe(sparsity)
        near = self.at(wanted)
        other = f"use {near} (sparsity {near.sparsity:g})" if near != self else f"keep {self}"
        raise RecipeError(
            f"{self} is sparsity {self.sparsity:g}, but the recipe asks for {sparsity:g}. Leave sparsity "
            f"out; or, nearest among groups of {self.group}, {other}; or use pattern unstructured for "
            f"exactly {sparsity:g}"
        )

    def at(self, sparsity: float) -> NM:
        """Return the pattern of the same group whose sparsity is nearest; at least one weight is kept."""
        return NM(min(max(round((1.0 - sparsity) * self.group), 1), self.group), self.group)

    def check_shape(self, name: str, rows: int, cols: int) -> None:
        """Refuse a width that the group does not divide."""
        if cols % self.group:
            fits = [m for m in (16, 8, 4, 2) if cols % m == 0 and m != self.group]
            other = f"a group that divides it ({', '.join(map(str, fits))})" if fits else "pattern unstructured"
            raise PatternError(
                f"{name} has {cols} inputs, not a multiple of {self.group}, so {self} does not fit. "
                f"Leave the layer out of the recipe, or use {other}"
            )

    @property
    def groups_of(self) -> int:
        """M."""
        return self.group

    def units(self, name: str, shape: Shape) -> Entries:
        """Return single weights, in groups that span inputs."""
        whole(name, shape, 1, self.group, "group")
        return Entries(shape, prod(shape), groups=prod(shape) // self.group, inputs_last=True)

    def quota(self, units: Units, kept: int) -> Tensor:
        """Return N for every group."""
        return torch.full((units.groups,), self.keep)

    def mask(self, scores: Tensor, keep: int) -> Tensor:
        """Keep the best of each group; ``keep`` must be the one legal count, rows * cols * N / M.

        Raises:
            ValueError: ``keep`` belongs to another N; ask ``at`` for the layer's own pattern.
        """
        rows, cols = scores.shape
        self.check_shape("the layer", rows, cols)
        legal = rows * cols // self.group * self.keep
        if abs(keep - legal) >= self.group:
            raise ValueError(f"{self} keeps {legal} of {rows * cols} weights; got keep={keep}")
        return keep_top_rows(scores.reshape(-1, self.group), self.keep).reshape(rows, cols)

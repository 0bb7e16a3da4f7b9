"""The bench: layers that share an input, with all that refinements and repairs work on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from lowdim.core.pattern import Pattern
    from lowdim.core.quantize import Grid, Quantized
    from lowdim.core.statistics import InputStatistics


@dataclass
class Work:
    """One layer on the bench: the dense weight, its mask, and the weight to be written.

    Attributes:
        name: the layer.
        pattern: the pattern of its mask.
        keep: how many weights it is to keep.
        dense: the weight, fp32 ``[out, in]``; a repair may overwrite it.
        least: the smallest scale of a rounded weight, see `lowdim.core.quantize.least_scale`.
        mask: kept entries, bool ``[out, in]``; ``None`` until it is drawn.
        result: the weight to be written, fp32 ``[out, in]``; the repair sets it.
        unseen: what a repair set aside of the dense weight, see `Repair.prepare`.
        codes: levels and scales of a result that the repair rounded itself.
        rounding: the share of the kept weights' energy that this rounding lost.
        notes: fallbacks and other remarks, for the manifest.
    """

    name: str
    pattern: Pattern
    keep: int
    dense: Tensor
    least: float
    mask: Tensor | None = None
    result: Tensor | None = None
    unseen: Tensor | None = None
    codes: Quantized | None = None
    rounding: float | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def kept(self) -> Tensor:
        """The mask, once it is drawn."""
        assert self.mask is not None
        return self.mask

    @property
    def made(self) -> Tensor:
        """The result, once there is one."""
        assert self.result is not None
        return self.result


@dataclass(frozen=True)
class Bench:
    """Layers that share an input.

    Attributes:
        works: the layers.
        inputs: sums over their input, of the kinds that the recipe ``needs``.
        grid: what kept weights are rounded to; ``None`` if they are not.
    """

    works: list[Work]
    inputs: InputStatistics
    grid: Grid | None = None

    @property
    def energies(self) -> Tensor | None:
        """Sums of squares of every input ``[in]``, if they were collected."""
        if "gram" in self.inputs.needs:
            return self.inputs.gram.diagonal()
        return self.inputs.square if "square" in self.inputs.needs else None


@dataclass(frozen=True)
class Outcome:
    """What became of a layer.

    Attributes:
        name: the layer.
        mask: kept entries, bool ``[out, in]``; ``None`` for a layer that was left dense.
        error: ``tr(D H D^T) / tr(W H W^T)`` with ``D`` the change of the weight: the share of the layer's output energy
            that is lost on the calibration tokens. ``H`` is ``X X^T``, or its diagonal where only that was collected;
            ``None`` without statistics.
        notes: fallbacks and other remarks.
        codes: levels and scales ``[out, in]`` of a rounded layer.
        rounding: the share of the kept weights' energy that was lost when they were rounded.
        whole: whether every weight has a code, so that a level of 0 is one like others and no mask is stored.
    """

    name: str
    mask: Tensor | None
    error: float | None
    notes: tuple[str, ...] = ()
    codes: Quantized | None = None
    rounding: float | None = None
    whole: bool = False

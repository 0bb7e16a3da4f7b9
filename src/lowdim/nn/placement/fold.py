"""A placed decoder turned into a stock one that computes the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

from transformers import PreTrainedModel

from lowdim.core.errors import LowdimError
from lowdim.nn.placement.block import PlacedBlock, is_placed
from lowdim.nn.placement.config import placement_of, unmark
from lowdim.nn.placement.norms import neutral, scale_gain

if TYPE_CHECKING:
    from lowdim.nn.placement.base import Placement


def fold(model: PreTrainedModel, placement: Placement) -> None:
    """Fold a placement into the weights; see `Placement.fold_`."""
    given = placement_of(getattr(model, "config", None))
    if given != placement:
        raise LowdimError(
            f"there is nothing to fold: the model has {'no placement' if given is None else f'the placement {given}'}, "
            f"not {placement}"
        )
    blocks = [module for module in model.modules() if is_placed(module)]
    for block in blocks:
        _check(block, placement)
    for block in blocks:
        _fold(block)
    unmark(model.config)


def _check(block: PlacedBlock, placement: Placement) -> None:
    placed = block.placed
    if placed.rule.norms != placed.own.norms:
        raise LowdimError(
            f"{placement} cannot be folded: its norms stand where the code of {placed.stock.__name__} has none, so "
            "that no weights make it compute the same. Keep the model as it is, and load it with lowdim.load"
        )
    for seat in placed.seats:
        if placed.rule.scale != 1.0 and neutral(block.get_submodule(seat.enters)) is None:
            raise LowdimError(f"{placement} cannot be folded: {seat.enters} has no gain that could take the factor")


def _fold(block: PlacedBlock) -> None:
    placed = block.placed
    for seat in placed.seats:
        if placed.rule.scale != 1.0:
            scale_gain(block.get_submodule(seat.enters), placed.rule.scale)
    del block.placed
    block.__class__ = placed.stock  # type: ignore[assignment]

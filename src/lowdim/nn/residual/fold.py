"""A placed decoder turned into a stock one that computes the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lowdim.core.errors import LowdimError
from lowdim.nn.blocks import evaluating
from lowdim.nn.residual.block import Placed, PlacedBlock, is_placed, placed_class
from lowdim.nn.residual.config import placement_of, unmark
from lowdim.nn.residual.norms import neutral, scale_gain
from lowdim.nn.residual.sites import few_tokens, find_sites
from lowdim.nn.residual.weights import last_layers, scale

if TYPE_CHECKING:
    from lowdim.nn.placement.base import Placement

Change = tuple[nn.Module, Callable[[], None]]
_EXACT, _ROUNDED = 1e-3, 5e-2
"""Largest change of a logit, in standard deviations of all, that folded gates may make; in fp32, in half precision."""


def fold(model: PreTrainedModel, placement: Placement) -> None:
    """Fold a placement into the weights; see `Placement.fold_`."""
    given = placement_of(getattr(model, "config", None))
    if given is None and _leaves_stock(model, placement):
        return
    if given != placement:
        raise LowdimError(
            f"there is nothing to fold: the model has {'no placement' if given is None else f'the placement {given}'}, "
            f"not {placement}"
        )
    blocks = [module for module in model.modules() if is_placed(module)]
    for block in blocks:
        _check(block, placement)
    gates = _gates(model, blocks)
    before = _logits(model) if gates else None
    changes = [*_gains(blocks), *gates]
    kept = {p: p.detach().clone() for module, _ in changes for p in module.parameters()}
    taken = [(block, *_strip(block)) for block in blocks]
    for _, change in changes:
        change()
    if before is not None and (why := _differs(before, _logits(model))):
        with torch.no_grad():
            for parameter, value in kept.items():
                parameter.copy_(value)
        for block, placed, added in taken:
            _dress(block, placed, added)
        raise LowdimError(
            f"{placement} cannot be folded: {why}. Norms see the scale of the stream through their eps, and half "
            "precision rounds it; load the model in fp32, or keep it as it is"
        )
    unmark(model)


def _leaves_stock(model: PreTrainedModel, placement: Placement) -> bool:
    """Tell whether a placement changes nothing but weights in a model."""
    sites = find_sites(model)
    return all(placement.rule(at, len(sites), site.own) == site.own for at, site in enumerate(sites, 1))


def _check(block: PlacedBlock, placement: Placement) -> None:
    rule, own, stock = block.placed.rule, block.placed.own, block.placed.stock.__name__
    if (*rule.norms, rule.skip) != (*own.norms, own.skip):
        raise LowdimError(
            f"{placement} cannot be folded: its norms stand where the code of {stock} has none, so that no weights "
            "make it compute the same. Keep the model as it is, and load it with lowdim.load"
        )
    for seat in block.placed.seats:
        if rule.scale != 1.0 and neutral(block.get_submodule(seat.enters)) is None:
            raise LowdimError(f"{placement} cannot be folded: {seat.enters} has no gain that could take the factor")
    share = float(block.get_submodule("prores").a) if rule.ramp else 1.0  # type: ignore[arg-type]
    if share != 1.0:
        raise LowdimError(
            f"{placement} cannot be folded before its ramp has ended: a block counts with a share of {share:.4g}. "
            "Train on, or set_step(model, step) to a step beyond the ramp"
        )


def _gains(blocks: Sequence[PlacedBlock]) -> Iterator[Change]:
    for block in blocks:
        if block.placed.rule.scale != 1.0:
            for norm in (block.get_submodule(seat.enters) for seat in block.placed.seats):
                yield norm, partial(scale_gain, norm, block.placed.rule.scale)


def _gates(model: PreTrainedModel, blocks: Sequence[PlacedBlock]) -> list[Change]:
    """Return what divides what each branch adds by c, the product of the gates before it.

    The stream of the placed model is c times that of the stock one; norms do not see the factor.
    """
    gated = [block for block in blocks if block.placed.rule.gates]
    branches = [block.get_submodule(seat.branch.layer) for block in gated for seat in block.placed.seats]
    seats = [(block, at, seat) for block in gated for at, seat in enumerate(block.placed.seats)]
    within = [] if all(seat.leaves for *_, seat in seats) else last_layers(model, branches)
    changes: list[Change] = []
    c = 1.0
    for index, (block, at, seat) in enumerate(seats):
        if seat.leaves:
            norm = block.get_submodule(seat.leaves)
            changes.append((norm, partial(scale_gain, norm, 1 / c)))
        else:
            changes.append((within[index], partial(scale, within[index], 1 / c)))
        c *= 1.0 - float(block.gpas.share(at).detach())  # type: ignore[operator, union-attr]
        if c <= 0.0:
            raise LowdimError("GPAS cannot be folded: a gate above 1.278 turns the sign of the stream")
    return changes


def _strip(block: PlacedBlock) -> tuple[Placed, dict[str, nn.Module]]:
    """Make a placed block a stock one; return what it had."""
    placed = block.placed
    del block.placed
    block.__class__ = placed.stock  # type: ignore[assignment]
    return placed, {name: block._modules.pop(name) for name in ("gpas", "prores") if name in block._modules}  # type: ignore[misc]


def _dress(block: Any, placed: Placed, added: dict[str, nn.Module]) -> None:
    """Give back what `_strip` took."""
    for name, module in added.items():
        block.add_module(name, module)
    block.placed = placed
    block.__class__ = placed_class(placed.stock)  # type: ignore[arg-type]


def _logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad(), evaluating(model):
        found: Tensor = model(input_ids=few_tokens(model), use_cache=False)[0]
    return found


def _differs(before: Tensor, after: Tensor) -> str:
    """Return how logits differ by more than rounding; empty if they do not."""
    limit = _EXACT if before.dtype in (torch.float32, torch.float64) else _ROUNDED
    change = float((after.double() - before.double()).abs().max() / before.double().std())
    return "" if change <= limit else f"logits would change by {change:.2g} of their standard deviation"

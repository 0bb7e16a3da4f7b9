"""A placement put into a decoder: all is checked first, then the blocks change."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from copy import deepcopy
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from lowdim.core.errors import LowdimError
from lowdim.core.recipe.families import name_of
from lowdim.nn.blocks import evaluating
from lowdim.nn.residual.added import Gates, Ramp
from lowdim.nn.residual.block import Placed, Seat, is_placed, placed_class
from lowdim.nn.residual.config import mark, placement_of
from lowdim.nn.residual.norms import is_neutral, neutral, set_gain
from lowdim.nn.residual.rule import Rule
from lowdim.nn.residual.sites import Branch, Site, find_sites, first_of

if TYPE_CHECKING:
    from lowdim.nn.placement.base import Placement

_STARTED = "_lowdim_started"
"""The attribute of a model that tells whether a placement has set its weights."""


def mount(model: PreTrainedModel, placement: Placement, *, weights: bool = True) -> None:
    """Give a decoder a placement; see `Placement.apply_`.

    Args:
        model: the decoder.
        placement: what it gets.
        weights: whether its weights are those that it will be used with, not about to be replaced by a checkpoint's.
    """
    if not isinstance(model, PreTrainedModel):
        raise LowdimError(
            f"a placement is for a decoder of Transformers, got {type(model).__name__}. Unwrap or uncompile the model, "
            "apply the placement, then wrap it again"
        )
    if model.__dict__.get(_STARTED) or any(is_placed(module) for module in model.modules()):
        raise LowdimError(
            f"the model has a placement already ({placement_of(model.config) or 'initial weights of one'}). Build the "
            "model anew, or fold_ the first one where that is possible"
        )
    if name_of("placement", placement) is None:
        raise LowdimError(
            f"{type(placement).__name__} is not registered, so that no checkpoint could name it. Register it"
        )
    sites = find_sites(model)
    _rehearse(model, sites)
    rules = [placement.rule(at, len(sites), site.own) for at, site in enumerate(sites, 1)]
    placed = [_placed(site, rule) for site, rule in zip(sites, rules, strict=True)]
    for site, each in zip(sites, placed, strict=True):
        _check(site, each)
    changes = any(rule != site.own for site, rule in zip(sites, rules, strict=True))
    trained = weights and not _are_fresh(sites)
    if weights:
        placement.check_start(trained)
    starts = placement.start(model, sites) if weights and not trained else []
    for site, each in zip(sites, placed, strict=True):
        if each.rule != site.own:
            _place(site, each)
    for start in starts:
        start()
    if changes:
        mark(model, placement)
    model.__dict__[_STARTED] = bool(starts)
    if trained and changes:
        warnings.warn(
            f"the model has been trained, and {placement} changes what it computes: its loss jumps before it goes on "
            "falling. lowdim.nn.placement.jump measures by how much",
            stacklevel=3,
        )


def _rehearse(model: nn.Module, sites: Sequence[Site]) -> None:
    """Run each block by its own rule, as a placed one runs, and hold it to what it returns otherwise, bit for bit."""
    with torch.no_grad(), evaluating(model):
        for site in sites:
            args, kwargs = site.call
            expected = first_of(site.block(*args, **kwargs))
            try:
                same = torch.equal(first_of(_placed(site, site.own).run(site.block, *args, **kwargs)), expected)
            except Exception as error:  # whatever a model's own code raises
                raise LowdimError(
                    f"{site.name}: the code of {type(site.block).__name__} cannot be led: {error}"
                ) from error
            if not same:
                raise LowdimError(
                    f"{site.name}: the code of {type(site.block).__name__} does more than call its norms and branches"
                )


def _placed(site: Site, rule: Rule) -> Placed:
    one, two = (_seat(branch, rule) for branch in site.branches)
    return Placed(rule, (one, two), site.own, type(site.block))


def _seat(branch: Branch, rule: Rule) -> Seat:
    """Say which norm of a branch does what. The one before it takes the sum where nothing else would."""
    added = f"{branch.layer}_norm"
    closing = branch.after or (added if rule.enters else branch.before)
    return Seat(
        branch,
        enters=branch.before if rule.enters else "",
        leaves=(branch.after or added) if rule.leaves else "",
        closes=closing if rule.closes else "",
    )


def _check(site: Site, placed: Placed) -> None:
    if "forward" in vars(site.block) or any(isinstance(p, DTensor) for p in site.block.parameters()):
        raise LowdimError(
            f"{site.name} has been sharded, or its forward replaced (device_map, hooks of accelerate), so a placement "
            "would not be what runs. Apply it first"
        )
    for seat in placed.seats:
        neutral(site.block.get_submodule(seat.branch.before))  # refuses what is no norm
        for name in (seat.leaves, seat.closes, *_EXTRA):
            if name and name not in seat.branch.norms and hasattr(site.block, name):
                raise LowdimError(f"{site.name} has a {name} of its own, the name of what the placement adds")


_EXTRA = ("gpas", "prores", "placed")


def _are_fresh(sites: Sequence[Site]) -> bool:
    """Tell whether norms show that a network has not been trained: there are gains, and they are all 1."""
    norms = [site.block.get_submodule(name) for site in sites for branch in site.branches for name in branch.norms]
    return any(True for norm in norms for _ in norm.parameters()) and all(map(is_neutral, norms))


def _place(site: Site, placed: Placed) -> None:
    """Give a block its rule: norms added and taken away, gates and shares added, and the class that runs them."""
    block, rule = site.block, placed.rule
    for seat in placed.seats:
        used = {seat.enters, seat.leaves, seat.closes} - {""}
        for name in used - set(seat.branch.norms):
            norm = deepcopy(block.get_submodule(seat.branch.before))
            set_gain(norm, neutral(norm) or 0.0)
            block.add_module(name, norm)
        for name in set(seat.branch.norms) - used:
            block.set_submodule(name, nn.Identity())
    device = next(block.parameters()).device
    if rule.gates:
        block.add_module("gpas", Gates(rule.gates, device))
    if rule.ramp:
        block.add_module("prores", Ramp(device))
    block.placed = placed  # type: ignore[assignment]
    block.__class__ = placed_class(placed.stock)  # type: ignore[arg-type]

"""Unified masks: element, N:M and channel patterns drawn from one set of weights, each with an eye on the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from lowdim.core.errors import RecipeError
from lowdim.core.pattern.nm import NM
from lowdim.core.topk import keep_top, keep_top_rows
from lowdim.models.structure.selection import Weight, ends, weights
from lowdim.train.sparse.plan import units_of
from lowdim.train.tickets.lottery import LotteryTickets

Kept = Mapping[str, Tensor]
"""By parameter name, which weights are kept, bool."""


@dataclass(frozen=True, eq=False)
class Unified:
    """The masks of a stage.

    Attributes:
        stage: how many times masks were drawn; 0 is dense.
        element: single weights, compared over all layers.
        channel: output channels, compared within a layer; None where there are none.
        groups: N of every M inputs; None until they are drawn for the first time.
        pattern: that of ``groups``.
    """

    stage: int
    element: Kept
    channel: Kept | None = None
    groups: Kept | None = None
    pattern: NM | None = None

    def named(self) -> dict[str, Kept]:
        """Return the masks that there are, in the order in which they take turns."""
        found = {"element": self.element, "channel": self.channel, "groups": self.groups}
        return {} if not self.stage else {name: masks for name, masks in found.items() if masks is not None}


@dataclass(frozen=True)
class Unifier:
    """Draws the masks of the next stage.

    Attributes:
        chosen: the weights that are masked.
        element: share of the remaining weights that a stage takes away.
        channel: share of the remaining output channels of each layer that a stage takes away; 0 has no such masks.
        refill: weight of the element masks in the score of a channel, against that of the groups.
    """

    chosen: tuple[Weight, ...]
    element: float
    channel: float
    refill: float
    _rule: LotteryTickets = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_rule", LotteryTickets(rate=self.element))

    def start(self) -> Unified:
        """Return masks that keep everything."""
        return Unified(0, {w.name: torch.ones_like(w.parameter, dtype=torch.bool) for w in self.chosen})

    @torch.no_grad()
    def draw(self, before: Unified, pattern: NM | None) -> Unified:
        """Return the masks after one more stage.

        Args:
            before: the masks of the stage that the weights were trained in.
            pattern: N:M masks to draw as well; None leaves them as they are.

        Raises:
            NumericalError: a weight is NaN.
        """
        stage = before.stage + 1
        found = {w.name: w.parameter.detach() for w in self.chosen}
        made = replace(before, stage=stage, element=self._rule.prune(found, before.element, stage))
        if pattern is not None:
            made = replace(made, pattern=pattern, groups={w.name: grouped(w, pattern) for w in self.chosen})
        if not self.channel:
            return made
        share = (1.0 - self.channel) ** stage
        return replace(made, channel={w.name: self._channels(w, made, share) for w in self.chosen})

    def _channels(self, weight: Weight, masks: Unified, share: float) -> Tensor:
        """Keep round(share * C) output channels, at least one: those of the largest sum of what other masks keep."""
        magnitude, axis = weight.parameter.detach().abs().float(), int(weight.inputs_first)
        groups = 1.0 if masks.groups is None else masks.groups[weight.name].float()
        score = (self.refill * masks.element[weight.name].float() + (1.0 - self.refill) * groups) * magnitude
        rest = [dim for dim in range(score.ndim) if dim != axis]
        kept = keep_top(score.sum(rest), max(1, round(share * score.shape[axis])))
        shape = [-1 if dim == axis else 1 for dim in range(score.ndim)]
        return kept.view(shape).expand_as(score).clone()


def grouped(weight: Weight, pattern: NM) -> Tensor:
    """Return the mask of the largest N of every M inputs of a weight."""
    units = units_of(pattern, weight)
    values = units.values(weight.parameter.detach().abs())
    return units.spread(keep_top_rows(values.reshape(units.groups, -1), pattern.keep).reshape(-1))


def chosen(
    model: nn.Module,
    patterns: Sequence[NM],
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
) -> tuple[Weight, ...]:
    """Return the weights that become sparse; by default neither the head nor a first convolution.

    Raises:
        RecipeError: none is left, or one holds a matrix per expert, whose channels are not those of the model.
        PatternError: the inputs of one are no whole number of groups; it is named.
    """
    found = [w for w in weights(model, include, exclude) if not w.dense]
    if include is None:
        found = [w for w in found if not (w.name == ends(model)[0] and w.parameter.ndim > 2)]
    if not found:
        raise RecipeError("no weight is left to be sparse: the first convolution stays dense. Name some with include.")
    if stacked := [w.name for w in found if w.stacked]:
        raise RecipeError(f"{stacked[0]} holds a matrix per expert, which has no channels of its own. Exclude it.")
    for each in found:
        for pattern in patterns:
            units_of(pattern, each)
    return tuple(found)

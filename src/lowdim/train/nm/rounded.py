"""Rounding in the loop: weights trained through the grid that they are stored on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lowdim.core.quantize import Grid, Quantized, decode, encode, nearest
from lowdim.train.ride import Ride, Rider


@dataclass
class RoundedWeight:
    """A weight and its grid.

    Attributes:
        mask: kept entries, bool ``[out, in]``; ``None`` for a dense weight, whose zeros are levels like others.
        grid: bits, and columns that share a scale.
        least: smallest scale, see `lowdim.core.quantize.least_scale`.
        turned: whether the weight is stored ``[in, out]``.
        codes: levels, scales and table, as of the last `refresh` and `project`.
    """

    mask: Tensor | None
    grid: Grid
    least: float
    turned: bool = False
    codes: Quantized | None = field(default=None, repr=False)

    def refresh(self, wide: Tensor) -> None:
        """Fit scales, and with 4 bits the table of levels, to the weight as it is now."""
        self.codes = encode(self._laid_out(wide), self.mask, self.grid, self.least)

    def project(self, wide: Tensor) -> Tensor:
        """Return the nearest point of the grid, ``level * scale``, zero off the mask, fp32 of the weight's shape."""
        if self.codes is None:
            self.refresh(wide)
        assert self.codes is not None
        scales, table = self.codes.scales, self.codes.table
        levels = nearest(self._laid_out(wide), self.mask, self.grid, scales, table)
        self.codes = Quantized(levels, scales, table)
        made = decode(levels, scales, self.grid)
        return made.t() if self.turned else made

    def _laid_out(self, wide: Tensor) -> Tensor:
        return wide.t().contiguous() if self.turned else wide


class Rounding(Rider):
    """Lets a model compute with rounded weights while an optimizer trains what they are rounded from.

    ``w = scale * level(v / scale)``; the gradient with respect to ``w`` is taken as that of the trained ``v``
    (straight-through). Levels are found anew at every step, scales and tables every so many. Hand `projections` to
    `lowdim.train.loop.Loop`; what is written in the end, `codes`, is what the model computed with last.

    Args:
        weights: by parameter.
        optimizer: that trains them.
        every: optimizer steps between two fits of the scales and tables.

    Example:
        >>> from lowdim.train.loop import Loop
        >>> layer = nn.Linear(64, 1, bias=False)
        >>> optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        >>> rounding = Rounding({layer.weight: RoundedWeight(None, Grid(8), 2.0**-126)}, optimizer)
        >>> loop = Loop(layer, optimizer, loss=lambda m, x: m(x).mean(), projected=rounding.projections())
        >>> _ = loop.run([torch.ones(4, 64)])
        >>> codes = rounding.codes(layer.weight)
        >>> torch.equal(layer.weight, codes.levels * codes.scales.float())
        True
    """

    def __init__(self, weights: Mapping[nn.Parameter, RoundedWeight], optimizer: Optimizer, every: int = 20) -> None:
        self._weights, self._every = dict(weights), every
        self._ride = Ride.board(optimizer, self)

    def weights(self) -> list[tuple[str, Tensor]]:
        """Return those that are rounded."""
        return [("", parameter) for parameter in self._weights]

    def projections(self) -> dict[nn.Parameter, Any]:
        """Return what the model computes with, by weight, for `lowdim.train.loop.Loop`."""
        return {parameter: weight.project for parameter, weight in self._weights.items()}

    def codes(self, parameter: nn.Parameter) -> Quantized:
        """Return the levels ``[out, in]``, scales and table of a weight, as the model computes with them."""
        codes = self._weights[parameter].codes
        assert codes is not None
        return codes

    def gradients(self, step: int) -> bool:
        """Leave the gradients: what is pruned has a rider of its own."""
        return False

    @torch.no_grad()
    def stepped(self, step: int) -> None:
        """Fit scales and tables to the weights, when it is time."""
        if step % self._every == 0:
            for parameter, weight in self._weights.items():
                weight.refresh(parameter.detach())

    def state_dict(self) -> dict[str, Any]:
        """Return every weight's scales and table; levels follow from the weights."""
        found = [weight.codes for weight in self._weights.values()]
        return {"step": self.step, "codes": [None if c is None else [c.scales, c.table] for c in found]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with these scales and tables."""
        self.step = state["step"]
        for (parameter, weight), held in zip(self._weights.items(), state["codes"], strict=True):
            if held is not None:
                scales, table = held[0].to(parameter.device), None if held[1] is None else held[1].to(parameter.device)
                weight.codes = Quantized(torch.empty(0, dtype=torch.int8), scales, table)

    def remove(self) -> None:
        """Get off."""
        self._ride.leave(self)

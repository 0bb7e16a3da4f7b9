"""One block trained to give what the dense one gives."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lowdim.core.quantize import Grid, Quantized, decode, least_scale
from lowdim.core.random import generator
from lowdim.core.schedule import cosine
from lowdim.data.batch import num_tokens
from lowdim.models import ranks
from lowdim.models.structure.layers import Layer
from lowdim.models.walk.calls import Activation
from lowdim.models.walk.stream import Block
from lowdim.pipeline.recover.pair import Trained
from lowdim.pipeline.recover.recipe import Recovery
from lowdim.train.loop import Loop
from lowdim.train.nm.riders import FixedMasks
from lowdim.train.nm.rounded import RoundedWeight, Rounding
from lowdim.train.objectives.distill import real, relative_error

LOOKS = 8
"""How often a block's training looks at the held-out text."""
WARMUP = 0.05


@dataclass(frozen=True)
class Example:
    """What a block is fed and what it is to give: hidden states ``[B, T, D]``."""

    given: Activation
    wanted: Tensor


@dataclass(frozen=True)
class Fit:
    """What became of a block: its error on held-out text before (rounded, if it is) and after, steps and seconds.

    ``note`` says why it ended early, where that was for no good reason.
    """

    before: float
    after: float
    steps: int
    seconds: float
    note: str = ""


class Fitter:
    """Trains blocks, one after the other, as a recipe says."""

    def __init__(self, recipe: Recovery, steps: int) -> None:
        self.recipe, self.steps = recipe, steps

    def loss(self, block: Block, example: Example) -> Tensor:
        """Return a block's error on an example."""
        batch = example.given.batch
        return relative_error(real(block.forward(example.given), batch), real(example.wanted, batch))

    @torch.no_grad()
    def error(self, block: Block, examples: Sequence[Example]) -> float:
        """Return a block's mean error on examples, each weighing as its tokens."""
        return mean((float(self.loss(block, example)), num_tokens(example.given.batch)) for example in examples)

    def fit(
        self, block: Block, work: Trained, examples: Sequence[Example], held: Sequence[Example]
    ) -> tuple[Fit, dict[nn.Parameter, Quantized]]:
        """Train a block in place and leave it as it was best on the held-out examples, which may be as it began.

        The masters hold the weights afterwards as they are stored, and the module computes with these.

        Returns:
            What became of it, and the codes of the weights that are rounded.
        """
        begun = time.perf_counter()
        for parameter in work.parameters:
            parameter.requires_grad_(True)
        optimizer = torch.optim.Adam(work.parameters, lr=self.recipe.blocks.lr, betas=(0.9, 0.95), fused=True)
        masks = FixedMasks(work.masks, optimizer)
        rounding = rounded(self.recipe.grid_of("blocks"), work, optimizer)
        loop = Loop(
            block.module,
            optimizer,
            loss=lambda _, example: self.loss(block, example),
            clip=1.0,
            master=work.masters,
            projected=rounding.projections() if rounding else None,
            schedule=lambda step: rate(step, self.steps),
            size=lambda example: num_tokens(example.given.batch),
            together=ranks.active(),
        )
        before = self.error(block, held)
        best, note = _Best(loop, work, rounding, self.recipe.grid_of("blocks"), before), ""
        order = self._order(block.index, examples)
        while loop.step < self.steps and best.idle < self.recipe.blocks.patience:
            part = min(math.ceil(self.steps / LOOKS), self.steps - loop.step)
            lost = loop.run(next(order) for _ in range(part))
            if not math.isfinite(lost):
                note = f"its loss was not finite by step {loop.step}, and it went back to its best state"
                break
            best.look(self.error(block, held))
        best.restore()
        for rider in filter(None, (masks, rounding)):
            rider.remove()
        for parameter in work.parameters:
            parameter.requires_grad_(False)
        return Fit(before, best.error, loop.step, round(time.perf_counter() - begun, 3), note), best.codes

    def _order(self, index: int, examples: Sequence[Example]) -> Iterator[Example]:
        rng = generator(self.recipe.seed, "recover", "block", index)
        while True:
            for place in torch.randperm(len(examples), generator=rng).tolist():
                yield examples[place]


def mean(losses: Iterable[tuple[float, int]]) -> float:
    """Return the mean of what was lost on some tokens each, over all ranks."""
    own = [(lost * tokens, tokens) for lost, tokens in losses]
    everyone = ranks.gathered((sum(lost for lost, _ in own), sum(tokens for _, tokens in own)))
    return sum(lost for lost, _ in everyone) / sum(tokens for _, tokens in everyone)


class _Best:
    """The state of a block that did best on the held-out examples."""

    def __init__(self, loop: Loop, work: Trained, rounding: Rounding | None, grid: Grid | None, error: float) -> None:
        self._loop, self._work, self._rounding, self._grid = loop, work, rounding, grid
        self.error, self.idle = error, 0
        self.codes: dict[nn.Parameter, Quantized] = {}
        self._keep()

    def look(self, error: float) -> None:
        """Keep the state if it is better than all before."""
        if error < self.error:
            self.error, self.idle = error, 0
            self._keep()
        else:
            self.idle += 1

    def _keep(self) -> None:
        self._wide = {p: self._loop.copy_of(p).detach().clone() for p in self._work.parameters}
        if self._rounding is not None:
            codes = ((parameter, self._rounding.codes(parameter)) for parameter in self._work.layers)
            self.codes = {p: made._replace(levels=made.levels.clone()) for p, made in codes}

    @torch.no_grad()
    def restore(self) -> None:
        """Write the best state into the masters, and into the module."""
        for parameter, master in self._work.masters.items():
            layer, wide = self._work.layers.get(parameter), self._wide[parameter]
            if layer is None:
                master.copy_(wide)
                parameter.copy_(master)
            elif parameter in self.codes:
                codes = self.codes[parameter]
                assert self._grid is not None
                layer.write(decode(codes.levels, codes.scales, self._grid))
            else:
                layer.write(wide.t() if layer.transposed else wide)


def rounded(grid: Grid | None, work: Trained, optimizer: torch.optim.Optimizer) -> Rounding | None:
    """Return what rounds the layers' weights in the loop; ``None`` without a grid."""
    if grid is None:
        return None
    return Rounding({p: on_grid(layer, work.masks.get(p), grid) for p, layer in work.layers.items()}, optimizer)


def on_grid(layer: Layer, mask: Tensor | None, grid: Grid) -> RoundedWeight:
    """Return how a layer's weight is rounded; the mask lies as the weight does."""
    own = mask.t() if mask is not None and layer.transposed else mask
    return RoundedWeight(own, grid, least_scale(layer.master.dtype), layer.transposed)


def rate(step: int, steps: int, floor: float = 0.0) -> float:
    """Return the factor on the learning rate: a short linear rise, then a cosine down to ``floor``.

    Example:
        >>> [round(rate(step, 100), 3) for step in (0, 4, 5, 99)]
        [0.2, 1.0, 1.0, 0.0]
    """
    rise = max(1, round(WARMUP * steps))
    return (step + 1) / rise if step < rise else cosine(step + 1 - rise, max(1, steps + 1 - rise), 1.0, floor)

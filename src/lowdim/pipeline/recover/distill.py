"""The second stage: the whole model, trained to predict what the dense one predicts."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedModel

from lowdim.core.errors import LowdimError, NumericalError
from lowdim.core.progress import Progress
from lowdim.core.quantize import Quantized, decode
from lowdim.core.random import generator
from lowdim.data.batch import Batch, num_tokens
from lowdim.models import ranks
from lowdim.models.load import load
from lowdim.models.structure.layers import Layer
from lowdim.models.structure.zeros import mask_of
from lowdim.models.walk.attention import adopted
from lowdim.models.walk.inputs import model_inputs
from lowdim.models.walk.skeleton import Reader
from lowdim.models.walk.stream import Block
from lowdim.nn.blocks import find_blocks, recompute_
from lowdim.nn.slorb import add_slorb
from lowdim.pipeline.recover.blocks import Text, write
from lowdim.pipeline.recover.fit import mean, on_grid, rate
from lowdim.pipeline.recover.pair import Pair, trained
from lowdim.pipeline.recover.sharded import OwnStates, shard, whole
from lowdim.pipeline.recover.shared import States
from lowdim.prune.keeper import BlockRecord, Keeper
from lowdim.train.loop import Loop
from lowdim.train.nm.base import Start
from lowdim.train.nm.rounded import RoundedWeight, Rounding
from lowdim.train.nm.scales import column_scales
from lowdim.train.objectives.distill import Distillation, Distiller

SCALED = 16
"""Batches on which the size of the layers' inputs is measured, for masks that are chosen by it."""
FLOOR = 0.1
"""Share of the learning rate that is left at the end."""
_REMEMBERED, _MANY = 2 << 30, 1_000_000
_APART, _RETURNS = 20, 10
"""Steps between two states to go back to, at least, and how many there are of them in a long run."""


_Start = tuple[dict[nn.Parameter, Tensor], list[dict[str, Any]]]


@dataclass(frozen=True)
class Held:
    """The loss on held-out text before and after, and the steps taken."""

    before: float
    after: float
    steps: int
    tokens: int
    seconds: float


class _DivergedError(Exception):
    """A step's gradient, or its loss, was NaN or Inf; the step was not taken."""


class DistillStage:
    """Trains a student in memory; the model is read from what the stage before has written.

    Args:
        pair: the models.
        text: batches of tokens.
        reader: what the blocks are read from; ``None`` for the student as it was given.
    """

    def __init__(self, pair: Pair, text: Text, reader: Reader | None) -> None:
        self.pair, self.text, self._reader = pair, text, reader
        self.names = {info.name for info in pair.student.layers}
        self.sharded = pair.recipe.distill.shard
        self.student = self._model(pair.student)
        self.teacher = self._model(pair.teacher)
        settings = pair.recipe.distill
        self.student.requires_grad_(False)
        self.teacher.requires_grad_(False)
        self._open()
        self.beside = self._put_beside()
        if settings.checkpointing:
            recompute_(self.student)
            for block in find_blocks(self.student)[1]:
                block.training = True  # blocks that only answer keep no checkpoints; what is in them drops nothing out
        parts = Distillation(settings.kl, settings.ce, settings.hidden, settings.temperature)
        self.distiller = Distiller(parts, self.student, self.teacher)
        self._taught: dict[int, Tensor] = {}
        width = self.teacher.config.get_text_config().hidden_size
        size = num_tokens(text.train) * width * next(self.teacher.parameters()).itemsize
        self.remembers = ranks.broadcast(size <= _REMEMBERED) and not settings.hidden
        self.accumulate = max(1, round(settings.sequences / sum(ranks.gathered(len(text.train[0])))))

    def _model(self, opened: Any) -> PreTrainedModel:
        assert opened.source is not None
        stream = opened.stream
        return load(opened.source.path, stream.compute, stream.device, self.pair.recipe.trust_remote_code)

    def _open(self) -> None:
        """Take masters, masks and grids from the checkpoint, block by block; let what is trained have gradients."""
        self.masters: dict[nn.Parameter, Tensor] = {}
        self.masks: dict[nn.Parameter, Tensor] = {}
        self._turned: dict[str, bool] = {}
        self._grids: dict[nn.Parameter, RoundedWeight] = {}
        self._pruned: set[str] = set()
        stream, pruned = self.pair.student.stream, self.pair.pruned
        for index in range(len(stream)):
            with stream.block(index) as block:  # as it was given: what a later stage rounds to zero was not pruned
                work = trained(block, self.names, pruned)
                listed = {each.parameter.removeprefix(f"{block.name}.") for each in block.layers if each.name in pruned}
                masks = {n: mask_of(master, n in listed) for n, master in block.masters.items()}
                self._pruned |= {layer.name for parameter, layer in work.layers.items() if parameter in work.masks}
            with stream.block(index, self._reader) as block:
                self._take_block(block, masks)

    def _take_block(self, block: Block, masks: Mapping[str, Tensor | None]) -> None:
        work, grid = trained(block, self.names), self.pair.recipe.grid
        own, other = (model.get_submodule(block.name) for model in (self.student, self.teacher))
        inner = {layer.parameter.removeprefix(f"{block.name}."): layer for layer in work.layers.values()}
        wide = {name: block.masters[name].float() for name in [*inner, *work.others.values()]}
        with torch.no_grad():
            for name, master in block.masters.items():
                own.get_parameter(name).copy_(master)
        if self.pair.recipe.masks.moves:  # pruned weights live again, with the teacher's values
            for name in inner:
                if (mask := masks[name]) is not None:
                    wide[name] = torch.where(mask, wide[name], other.get_parameter(name).detach().float())
        if self.sharded:
            compute = next(other.parameters()).dtype
            shard(own, compute, wide)
            shard(other, compute)
        for name, master in wide.items():
            parameter = own.get_parameter(name)
            parameter.requires_grad_(True)
            self.masters[parameter] = parameter.detach() if self.sharded else master
        for name, layer in inner.items():
            parameter, mask = own.get_parameter(name), masks[name]
            if mask is not None:
                self.masks[parameter] = mask
                self._turned[layer.parameter] = layer.transposed
            if grid is not None:
                self._grids[parameter] = self._rounded(layer, parameter.dim(), mask)

    @torch.no_grad()
    def _put_beside(self) -> list[nn.Parameter]:
        """Put beside pruned layers what the masks' rule asks for; return the parameters that are new."""
        settings = self.pair.recipe.masks.beside()
        if not settings or not self._turned:
            return []
        parameters = {name: self.student.get_parameter(name) for name in self._turned}
        for parameter in parameters.values():
            parameter.copy_(self.masters[parameter])  # it begins with what is pruned, which the loop will hide
        masks = {name: self.masks[parameter] for name, parameter in parameters.items()}
        turned = [name for name, transposed in self._turned.items() if transposed]
        made = list(add_slorb(self.student, masks, transposed=turned, **settings).values())
        for parameter in made:
            parameter.requires_grad_(True)
        return made

    def _rounded(self, layer: Layer, dims: int, mask: Tensor | None) -> RoundedWeight:
        grid = self.pair.recipe.grid
        assert grid is not None
        if dims != 2:
            raise LowdimError(
                f"{layer.name} is one of several experts in one tensor, which the end-to-end stage does not round. "
                "Train through the grid block by block: stage='blocks'."
            )
        return on_grid(layer, mask, grid)

    # ---------------------------------------------------------------- time

    def time_step(self) -> tuple[float, float]:
        """Return the seconds of a step of the optimizer, and of what the teacher does for a batch; nothing moves."""
        loop = self._begin(_MANY, lr=0.0)
        places, found = list(range(min(self.accumulate, len(self.text.train)))), (math.inf, math.inf)
        for _ in range(3):
            begun = time.perf_counter()
            if self.remembers:
                float(sum(self._teach(place)[..., 0].sum() for place in places))  # once the device has computed it
            asked = time.perf_counter()
            loop.run(places)
            taught = (asked - begun) / len(places) if self.remembers else 0.0
            found = min(found[0], time.perf_counter() - asked), min(found[1], taught)
            self._taught.clear()
        for rider in self._riding:
            rider.remove()
        return found

    # ---------------------------------------------------------------- training

    def _teach(self, place: int) -> Tensor:
        if place not in self._taught:
            with adopted():
                made = self.distiller.teach(self.text.train[place])
            if not self.remembers:
                return made
            self._taught[place] = made
        return self._taught[place]

    def _loss(self, model: nn.Module, place: int) -> Tensor:
        taught = self._teach(place) if self.remembers else None
        with adopted():
            return self.distiller(model, self.text.train[place], taught)

    def _places(self, begin: int) -> Iterator[int]:
        """Yield the batches from the micro-batch ``begin`` on, in a new order for every pass."""
        count, seed = len(self.text.train), self.pair.recipe.seed
        number = begin // count
        while True:
            order = torch.randperm(count, generator=generator(seed, "recover", "distill", number)).tolist()
            yield from order[begin % count if number == begin // count else 0 :]
            number += 1

    @torch.no_grad()
    def held_out(self) -> float:
        """Return the loss on the held-out batches, each token weighing the same."""
        with adopted():
            return mean((float(self.distiller(self.student, batch)), num_tokens(batch)) for batch in self.text.held)

    def run(self, steps: int, keeper: Keeper, store: States, progress: Progress) -> Held:
        """Train for so many steps, or what is left of them; the student then is as it did best, or as it began.

        Args:
            steps: of the optimizer.
            keeper: of the run, whose state says how the stage began.
            store: where the state of the training is kept while it lasts.
            progress: told of every step.
        """
        begun = time.perf_counter()
        self.loop, parameters = self._begin(steps, self.pair.recipe.distill.lr), [*self.masters, *self.beside]
        states = OwnStates(store.partial, keeper, self.loop) if self.sharded else store
        ended, end = keeper.recall("distilled"), states.ended()
        if ended is not None and end is not None:  # what was read may be half overwritten with the outcome
            self.loop.load_state_dict(end)
            return Held(**ended)
        first = keeper.recall("held_out")
        if first is None:
            first = self.held_out()
            keeper.remember("held_out", first)
        start = {p: self.loop.copy_of(p).clone() for p in parameters}, [r.state_dict() for r in self._riding]
        if (state := states.get()) is not None:
            self.loop.load_state_dict(state)
        try:
            self._train(steps, states, progress)
        except (_DivergedError, NumericalError):  # the loss is NaN, or the weights that masks are chosen by
            self._back(states, start, keeper)
        if flips := [dict(update) for rider in self._held for update in rider.history]:
            keeper.remember("masks", flips)
        last = self.held_out()
        if not last <= first:
            self._take(start)
            keeper.remember("distill_note", f"training ended at {last:.4g} on held-out text, from {first:.4g}: undone")
            last = first
        seen = islice(self._places(0), self.loop.step * self.accumulate)
        tokens = sum(ranks.gathered(sum(num_tokens(self.text.train[place]) for place in seen)))
        held = Held(first, last, self.loop.step, tokens, round(time.perf_counter() - begun, 3))
        keeper.remember("distilled", asdict(held))
        states.end(self.loop.state_dict())
        return held

    def _begin(self, steps: int, lr: float) -> Loop:
        """Return the loop that trains the student."""
        parameters = [*self.masters, *self.beside]
        optimizer = torch.optim.Adam(parameters, lr=lr, betas=(0.9, 0.95), fused=True)
        self._riding, self._projected = self._riders(optimizer, steps)
        return Loop(
            self.student,
            optimizer,
            loss=self._loss,
            accumulate=self.accumulate,
            clip=self.pair.recipe.distill.clip,
            master=False if self.sharded else self.masters,
            projected=self._projected,
            schedule=lambda step: rate(step, steps, FLOOR),
            riders=self._riding,
            size=lambda place: num_tokens(self.text.train[place]),
            together=ranks.active() and not self.sharded,
        )

    def _riders(self, optimizer: Optimizer, steps: int) -> tuple[list[Any], dict[nn.Parameter, Any]]:
        """Return what holds or moves the masks, and rounds; and what the model computes with."""
        parameters = {name: self.student.get_parameter(name) for name in self._turned}
        turned = [name for name, transposed in self._turned.items() if transposed]
        start = Start(
            parameters,
            {name: self.masks[parameter] for name, parameter in parameters.items()},
            self.pair.pattern,
            optimizer,
            steps,
            lambda: column_scales(self.student, parameters, self.text.train[:SCALED], self._answer, turned),
            turned,
        )
        self._held = [self.pair.recipe.masks.ride(start)] if parameters else []
        riders: list[Any] = [*self._held]
        self.rounding = Rounding(self._grids, optimizer) if self._grids else None
        riders += [self.rounding] if self.rounding else []
        return riders, {parameter: made for rider in riders for parameter, made in rider.projections().items()}

    def _answer(self, model: nn.Module, batch: Batch) -> None:
        with adopted():
            model(**model_inputs(model, batch, next(model.parameters()).device))

    def _train(self, steps: int, store: States | OwnStates, progress: Progress) -> None:
        saved = time.monotonic()
        places = self._places(self.loop.step * self.accumulate)
        with progress.stage("Recover end to end", steps, "steps") as stage:
            stage.advance(self.loop.step)

            def check(*_: Any) -> None:
                if not math.isfinite(self.loop.norm):
                    raise _DivergedError

            watch = self.loop.optimizer.register_step_pre_hook(check)
            try:
                while self.loop.step < steps:
                    self.loop.run([next(places) for _ in range(self.accumulate)])
                    stage.advance()
                    good = self.loop.step % max(_APART, steps // _RETURNS) == 0 and self.loop.step < steps
                    if good or ranks.broadcast(time.monotonic() - saved >= self.pair.recipe.save_seconds):
                        store.put(self.loop.state_dict(), good)
                        saved = time.monotonic()
            finally:
                watch.remove()

    def _back(self, store: States | OwnStates, start: _Start, keeper: Keeper) -> None:
        """Go back to the last good state, or to the beginning."""
        state, step = store.get(good=True), self.loop.step + 1
        if state is not None:
            self.loop.load_state_dict(state)
        else:
            self._take(start)
            self.loop.step = 0
        keeper.remember(
            "distill_note", f"the gradient of step {step} was not finite; training went back to step {self.loop.step}"
        )

    def _take(self, start: _Start) -> None:
        """Go back to how the stage began: masks, grids, weights."""
        weights, states = start
        for rider, state in zip(self._riding, states, strict=True):
            rider.load_state_dict(state)
        self.loop.replace_copies(weights)

    # ---------------------------------------------------------------- what comes out

    def forward(self, batches: Sequence[Batch], advance: Callable[[], None] = lambda: None) -> Iterator[Tensor]:
        """Yield the logits of every batch, with all that stands beside the layers; see `Stream.forward`."""
        for batch in batches:
            with torch.no_grad(), adopted():
                inputs = model_inputs(self.student, batch, next(self.student.parameters()).device)
                logits = self.student(**inputs).logits
            for _ in range(len(self.pair.student.stream)):
                advance()
            yield logits

    def write(self, keeper: Keeper) -> dict[int, BlockRecord]:
        """Write every block with the trained weights; return the records."""
        stream, records = self.pair.student.stream, dict[int, BlockRecord]()
        for index in range(len(stream)):
            with stream.block(index, self._reader) as block:
                work = trained(block, self.names)
                codes: dict[nn.Parameter, Quantized] = {}
                for own, layer in work.layers.items():
                    parameter = self.student.get_parameter(layer.parameter)
                    if self.rounding is not None:
                        made = codes[own] = self.rounding.codes(parameter)
                        layer.write(decode(made.levels, made.scales, self._grids[parameter].grid))
                        continue
                    wide = self.loop.copy_of(parameter)
                    wide = self._projected[parameter](wide) if parameter in self._projected else wide
                    wide = whole(parameter, wide)
                    if wide.dim() == 3:
                        wide = wide[int(layer.name.rsplit(".", 2)[1])]
                    layer.write(wide.t() if layer.transposed else wide)
                for own, name in work.others.items():
                    parameter = self.student.get_parameter(f"{block.name}.{name}")
                    work.masters[own].copy_(whole(parameter, self.loop.copy_of(parameter)))
                records[index] = write(self.pair, keeper, block, work, codes, self._pruned)
        return records

"""A run under way: the loop, what is told of it, when it is judged and saved, and what ends it."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lowdim.core.errors import LowdimError
from lowdim.core.progress import Progress
from lowdim.models import ranks
from lowdim.nn.blocks import evaluating
from lowdim.train.loop import Loop
from lowdim.train.nm.riders import MaskRider
from lowdim.train.pretrain import speed
from lowdim.train.pretrain.checkpoint import Checkpoints
from lowdim.train.pretrain.goal import Goal
from lowdim.train.pretrain.log import Log
from lowdim.train.pretrain.prepare import Prepared
from lowdim.train.pretrain.sequences import Batches
from lowdim.train.ride import Rider

LOOKS = 10
_APART = 10
"""Steps between two states to go back to, at least; a state right before training diverges is no good one."""
_ROSE = 0.1
"""Nats above the loss of the first step at which a validation loss has risen: two texts differ by less."""


class DivergedError(LowdimError):
    """The gradient of a step is not finite; no weight has been changed by it."""

    def __init__(self, step: int, norm: float, loss: float) -> None:
        super().__init__(f"training diverged at step {step}")
        self.facts = {"step": step, "norm": str(norm), "loss": str(loss)}


class Run:
    """One model in training.

    Args:
        prepared: recipe, text and device of the run.
        model: in training mode, spread over the processes if there are several.
        optimizer: of what is trained of it.
        riders: of the optimizer, saved with the loop.
        copies: what `Loop` takes as ``master``.
        goal: what it is trained for, and judged by.
        stage: what the training is called while it runs.
        looks_first: whether it is judged before the first step too.
    """

    def __init__(
        self,
        prepared: Prepared,
        model: nn.Module,
        optimizer: Optimizer,
        riders: Sequence[Rider],
        copies: bool | Mapping[nn.Parameter, Tensor],
        goal: Goal,
        stage: str,
        looks_first: bool = False,
    ) -> None:
        recipe, steps, self.stage, self._looks_first = prepared.recipe, prepared.steps, stage, looks_first
        self.recipe, self.steps, self.model, self.held = recipe, steps, model, prepared.held
        self.device, self.goal = prepared.device, goal
        self.batches = Batches(prepared.text, recipe.batch, recipe.accumulate, recipe.seed, ranks.rank(), ranks.size())
        self.loop = Loop(
            model,
            optimizer,
            loss=self._loss,
            accumulate=recipe.accumulate,
            clip=recipe.clip,
            master=copies,
            projected={p: f for r in riders if isinstance(r, MaskRider) for p, f in r.projections().items()},
            schedule=lambda step: recipe.factor(step, steps),
            riders=riders,
            size=lambda micro: micro.counted,
        )
        self.every = recipe.evaluation.every or max(1, steps // LOOKS)
        self.curve: list[dict[str, Any]] = []
        self.first = -math.inf  # the loss of the first step
        self.share: float | None = None  # of a second at the machine's peak that the arithmetic of a token takes
        self.jump: dict[str, float] | None = None  # of the validation loss, by a new placement
        self._lost: Tensor | float = math.nan
        self._counted = self.seen = 0
        self._seconds: list[float] = []
        self._rates: list[float] = []

    # ---------------------------------------------------------------- a step

    def _loss(self, model: nn.Module, micro: Any) -> Tensor:
        torch.manual_seed(micro.seed)  # for what the model drops out; the caller's generators are put aside
        loss = self.goal.loss(model, micro, self.device)
        self._lost, self._counted = loss.detach(), self._counted + micro.counted
        return loss

    def _check(self) -> None:
        """Let no weight follow a gradient that is no number."""
        lost = float(self._lost)  # where weights move in the backward pass no gradient is left that would have a norm
        if not (math.isfinite(self.loop.norm) and math.isfinite(lost)):
            raise DivergedError(self.loop.step + 1, self.loop.norm, lost)

    @torch.no_grad()
    def judge(self) -> dict[str, float]:
        """Return what the goal says of the validation text: of a loss, every token weighs the same, and counts once.

        Each rank looks at its share of the batches; their sums are added up.
        """
        size = self.recipe.evaluation.batch or max(1, self.recipe.batch // (self.recipe.accumulate * ranks.size()))
        rows = list(range(len(self.held)))
        batches = [rows[start : start + size] for start in range(0, len(rows), size)]
        sums = torch.zeros(self.goal.width, dtype=torch.float64, device=self.device)
        with evaluating(self.model):
            for index in range(ranks.rank(), -(-len(batches) // ranks.size()) * ranks.size(), ranks.size()):
                micro = self.held.micro(batches[min(index, len(batches) - 1)])  # shards are gathered by all or by none
                found = self.goal.sums(self.model, micro, self.device)
                if index < len(batches):
                    sums += found
        ranks.add_up([sums])
        return self.goal.verdict(sums.tolist())

    # ---------------------------------------------------------------- the run

    def train(self, checkpoints: Checkpoints, log: Log, progress: Progress, keep: Callable[[], None]) -> None:
        """Train until the last step, from the one that the loop is at; ``keep`` lets a model stay as it then is.

        Raises:
            DivergedError: a gradient is not finite.
        """
        first = self.loop.step
        if self._looks_first and not self.curve:
            self._look(log)
        saved = begun = time.monotonic()
        with (
            progress.stage(self.stage, self.steps, "steps") as stage,
            torch.random.fork_rng([self.device] if self.device.type == "cuda" else []),
        ):
            stage.advance(first)

            def told(step: int, loss: float) -> None:
                nonlocal saved, begun
                now = time.monotonic()
                line = self._line(step, loss, now - begun)
                self.first = line["loss"] if step == 1 else self.first
                log.write(line)
                stage.advance()
                if step % self.every == 0 and step < self.steps:
                    self._look(log)
                if self.recipe.keep and step % self.recipe.keep == 0 and step < self.steps:
                    keep()  # before the state that a run would go on from
                good = step % max(_APART, self.steps // LOOKS) == 0
                if step < self.steps and (good or self._due(time.monotonic() - saved)):
                    checkpoints.save(self.loop, self._beside(), good)
                    saved = time.monotonic()
                begun = time.monotonic()

            watch = self.loop.optimizer.register_step_pre_hook(lambda *_: self._check())
            try:
                self.loop.run(self.batches.between(first, self.steps), told)
            finally:
                watch.remove()

    def _beside(self) -> dict[str, Any]:
        return {"curve": self.curve, "seen": self.seen, "first": self.first, "jump": self.jump}

    def _due(self, seconds: float) -> bool:
        due = seconds >= self.recipe.save_seconds
        return ranks.broadcast(due) if ranks.active() else due

    def _line(self, step: int, loss: float, seconds: float) -> dict[str, Any]:
        """Return what the log says of a step, of all ranks together."""
        found = ranks.gathered((self._counted, loss * self._counted, speed.memory(self.device)))
        counted, self._counted = sum(count for count, *_ in found), 0
        self.seen += counted
        self._seconds.append(seconds)
        self._rates.append(counted / seconds)
        recent = self._seconds[-20:]
        return {
            "step": step,
            "loss": sum(lost for _, lost, _ in found) / counted,
            "lr": self.loop.optimizer.param_groups[0]["lr"],
            "norm": self.loop.norm,
            self.goal.unit: self.seen,
            f"{self.goal.unit}_per_s": round(counted / seconds, 1),
            **({} if self.share is None else {"mfu": round(counted / seconds * self.share, 4)}),
            "peak_bytes": max(held for *_, held in found),
            "eta_s": round((self.steps - step) * sum(recent) / len(recent), 1),
        }

    def _look(self, log: Log) -> None:
        found, step = self.judge(), self.loop.step
        self.curve.append({"step": step, self.goal.unit: self.seen, **found})
        log.write({"step": step, **{f"validation_{name}": value for name, value in found.items()}})

    def end(self, log: Log) -> None:
        """Judge the model as it is at last."""
        if not self.curve or self.curve[-1]["step"] != self.loop.step:
            self._look(log)

    def restore(self, checkpoints: Checkpoints, good: bool = False) -> bool:
        """Go on from the state that was saved last, or back to the good one; return whether there is one."""
        beside = checkpoints.load(self.loop, good)
        if beside is None:
            self.curve, self.seen, self.first = [], 0, -math.inf
        else:
            self.curve, self.seen, self.first = beside["curve"], beside["seen"], beside.get("first", -math.inf)
            self.jump = beside.get("jump")
        return beside is not None

    def lost(self, vocabulary: int) -> dict[str, Any] | None:
        """Return what is said of a run that ends above the loss of a uniform guess, and was above its first step's.

        Args:
            vocabulary: tokens that the model guesses among.
        """
        uniform, losses = math.log(vocabulary), [point["loss"] for point in self.curve]
        if self.goal.unit != "tokens" or losses[-1] <= uniform or max(losses) <= self.first + _ROSE:
            return None
        return {"step": self.loop.step, "loss": losses[-1], "uniform": uniform}

    @property
    def rate(self) -> float:
        """What counts, a second, in the median step of this attempt; NaN before the first."""
        return statistics.median(self._rates) if self._rates else math.nan

    @property
    def seconds(self) -> float:
        """Of the median step of this attempt; NaN before the first."""
        return statistics.median(self._seconds) if self._seconds else math.nan

"""One network in training: the target on the text, the reference, or a draft."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lowdim.core.errors import LowdimError
from lowdim.core.masks import Masks
from lowdim.core.progress import Progress
from lowdim.data.batch import Batch
from lowdim.models.walk.inputs import model_inputs
from lowdim.nn.blocks import evaluating
from lowdim.train.compare.store import CHECKPOINT, Store
from lowdim.train.draft.prepare import Prepared
from lowdim.train.drafters.base import Answers, DraftObjective
from lowdim.train.drafters.cross_entropy import CrossEntropy
from lowdim.train.keep import KeepZeros
from lowdim.train.loop import Loop
from lowdim.train.objectives.predictor import Predictor
from lowdim.train.objectives.rows import Scratch
from lowdim.train.pretrain.sequences import IGNORED, Batches, Micro

TARGET = "target"
PARTS = 10
"""Stretches of a training whose mean loss is told."""


@dataclass(frozen=True)
class Job:
    """What is trained for what, and how long.

    Attributes:
        name: "target", that of the method, or that with "-reference".
        objective: what for.
        steps: of the optimizer.
        lr: learning rate at its peak.
    """

    name: str
    objective: DraftObjective
    steps: int
    lr: float


@dataclass(frozen=True)
class Done:
    """What a training was.

    Attributes:
        steps: of the optimizer.
        lr: learning rate at its peak.
        tokens: that counted.
        losses: mean loss of each tenth of the steps.
        zeros: share of zeros in the layers that were kept, 0 if none were.
    """

    steps: int
    lr: float
    tokens: int
    losses: tuple[float, ...]
    zeros: float


class Training:
    """A network, its loop, and the frozen networks that its objective asks.

    Args:
        prepared: of the run.
        job: what is trained.
        network: in fp32 or, with ``copies``, in bfloat16; on its device.
        copies: what `Loop` takes as ``master``.
        beside: by role, "target" and "reference", the networks that the objective may ask.
    """

    def __init__(
        self,
        prepared: Prepared,
        job: Job,
        network: PreTrainedModel,
        copies: Mapping[nn.Parameter, Tensor],
        beside: Mapping[str, PreTrainedModel],
    ) -> None:
        self.prepared, self.job, self.network = prepared, job, network
        recipe = prepared.recipe
        network.requires_grad_(True).train()
        network.config.use_cache = False
        self._own = Predictor(network)
        self._beside = {role: Predictor(beside[role].requires_grad_(False)) for role in job.objective.asks}
        self._scratch = Scratch()
        self._words = prepared.words if self._beside else network.config.get_text_config(decoder=True).vocab_size
        optimizer = replace(recipe.optimizer, lr=job.lr).build(network)
        masks = _zeros(network)
        self.zeros = masks.sparsity() if masks else 0.0
        self.loop = Loop(
            network,
            optimizer,
            loss=self._loss,
            accumulate=recipe.accumulate,
            clip=recipe.clip,
            master=dict(copies) or False,
            schedule=lambda step: recipe.schedule.factor(step, job.steps),
            riders=[KeepZeros(network, optimizer, masks)] if masks else [],
            size=lambda micro: micro.counted,
        )
        self.batches = Batches(prepared.text, recipe.batch, recipe.accumulate, recipe.seed)
        self._sums = [[0.0, 0] for _ in range(PARTS)]
        self._counted = 0

    def _loss(self, model: nn.Module, micro: Micro) -> Tensor:
        torch.manual_seed(micro.seed)  # for what the network drops out; the caller's generators are put aside
        device = next(self.network.parameters()).device
        counted, tokens = (micro.targets != IGNORED).to(device), micro.targets[micro.targets != IGNORED].to(device)
        inputs = model_inputs(self.network, Batch(micro.ids), device)
        said: dict[str, Any] = {}
        for role, other in self._beside.items():
            with evaluating(other.network), torch.no_grad():
                said[role] = other.side(other.run(other.network, inputs).logits[counted]).words(self._words)
        draft = self._own.side(self._own.run(model, inputs).logits[counted]).words(self._words)
        self._counted += micro.counted
        return self.job.objective.loss(Answers(draft, tokens, **said), self._scratch)

    # ---------------------------------------------------------------- time

    def time_step(self) -> float:
        """Return the seconds of a step; the network is another afterwards."""
        found = math.inf
        with self._forked():
            for _ in range(2):
                begun = time.perf_counter()
                self.loop.run(self.batches.step(0))
                found = min(found, time.perf_counter() - begun)
        return found

    def _forked(self) -> Any:
        device = self.prepared.device
        return torch.random.fork_rng([device] if device.type == "cuda" else [])

    # ---------------------------------------------------------------- training

    def run(self, store: Store, progress: Progress) -> Done:
        """Train to the end, from the state that was saved last.

        Raises:
            LowdimError: the loss or its gradient is no number.
        """
        job, seconds = self.job, self.prepared.recipe.save_seconds
        state = store.get(CHECKPOINT)
        if state is not None and state["job"] == job.name:
            self.loop.load_state_dict(state["loop"])
            self._sums, self._counted = state["sums"], state["counted"]
        saved = time.monotonic()
        with progress.stage(f"Train: {job.name}", job.steps, "steps") as stage, self._forked():
            stage.advance(self.loop.step)

            def told(step: int, loss: float) -> None:
                nonlocal saved
                part = self._sums[(step - 1) * PARTS // job.steps]
                part[0], part[1] = part[0] + loss, part[1] + 1
                stage.advance()
                if time.monotonic() - saved >= seconds and step < job.steps:
                    store.put(CHECKPOINT, self._state())
                    saved = time.monotonic()

            watch = self.loop.optimizer.register_step_pre_hook(lambda *_: self._check())
            try:
                self.loop.run(self.batches.between(self.loop.step, job.steps), told)
            finally:
                watch.remove()
        losses = tuple(total / count for total, count in self._sums if count)
        return Done(job.steps, job.lr, self._counted, losses, self.zeros)

    def _state(self) -> dict[str, Any]:
        return {"job": self.job.name, "loop": self.loop.state_dict(), "sums": self._sums, "counted": self._counted}

    def _check(self) -> None:
        if not math.isfinite(self.loop.norm):
            raise LowdimError(
                f"training of {self.job.name} diverged: at step {self.loop.step + 1} the gradient's norm is "
                f"{self.loop.norm:.4g}. Lower its rate (optimizer.lr, tune.lr or reference.lr), or warm up longer."
            )

    def weights(self) -> dict[str, Tensor]:
        """Return the trained weights as they were trained, in fp32, by name; what is tied once."""
        named = dict(self.network.named_parameters())
        return {name: self.loop.copy_of(parameter).detach().cpu() for name, parameter in named.items()}


def _zeros(network: PreTrainedModel) -> Masks | None:
    try:
        found = Masks.of(network)
    except LowdimError:  # it was not pruned
        return None
    return found


def facts(done: Done) -> dict[str, Any]:
    """Return what JSON holds."""
    return {**asdict(done), "losses": list(done.losses)}


def jobs(prepared: Prepared) -> dict[str, Job]:
    """Return what a run trains, in its order: the target, references where a method asks for one, then drafts.

    A reference that a draft of another method is anyway, to the last setting, is not trained twice: that draft comes
    first then, and is the reference.
    """
    recipe, found = prepared.recipe, dict[str, Job]()
    if recipe.tune.steps:
        found[TARGET] = Job(TARGET, CrossEntropy(), recipe.tune.steps, recipe.tune.lr)
    lr = recipe.optimizer.lr
    drafts = [Job(name, each, prepared.steps, lr) for name, each in zip(recipe.names, recipe.methods, strict=True)]
    for job in drafts:
        wanted = reference_of(job, prepared)
        if wanted is not None:
            same = next((each for each in drafts if replace(each, name=wanted.name) == wanted), wanted)
            found.setdefault(same.name, same)
    for job in drafts:
        found.setdefault(job.name, job)
    return found


def reference_for(job: Job, prepared: Prepared) -> str | None:
    """Return the name of the training whose network is the reference of a draft, if it asks for one."""
    wanted = reference_of(job, prepared)
    if wanted is None:
        return None
    return next(name for name, each in jobs(prepared).items() if replace(each, name=wanted.name) == wanted)


def reference_of(job: Job, prepared: Prepared) -> Job | None:
    """Return the training of the reference that a draft asks for, if it does."""
    objective, given = job.objective.reference(), prepared.recipe.reference
    if objective is None:
        return None
    return Job(
        f"{job.name}-reference", objective, given.steps or prepared.steps, given.lr or prepared.recipe.optimizer.lr
    )

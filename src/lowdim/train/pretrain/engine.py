"""What a run does from its recipe to its output, in steps that a run of another kind does in its own way."""

from __future__ import annotations

import copy
import math
import shutil
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch

from lowdim.core.errors import LowdimError
from lowdim.core.files import read_json
from lowdim.core.machine import machine
from lowdim.core.progress import Progress
from lowdim.models import ranks
from lowdim.models.load import quiet
from lowdim.models.save import save_factors, save_model
from lowdim.nn.lowrank import dense_
from lowdim.runs import sidecar
from lowdim.runs.clock import Clock
from lowdim.runs.directory import Directory, tidy
from lowdim.runs.fingerprint import refuse_differences
from lowdim.train.pretrain import layers, network, speed
from lowdim.train.pretrain.checkpoint import Checkpoints, whole
from lowdim.train.pretrain.goal import NextToken
from lowdim.train.pretrain.log import Log
from lowdim.train.pretrain.plan import PretrainingPlan, planned
from lowdim.train.pretrain.prepare import Prepared, prepare
from lowdim.train.pretrain.recipe import Pretraining
from lowdim.train.pretrain.run import DivergedError, Run
from lowdim.train.pretrain.together import first, together, told_of_the_dead

SCHEMA = 1
_STOCK = ".stock"


@dataclass(frozen=True)
class Result:
    """What a run made.

    Attributes:
        facts: what its file in the output holds: equal for equal recipes, texts and versions.
        run: what ``OUT.run.json`` holds: times, speed, memory, the machine; empty for a run that was finished before.
        out: the output directory.
    """

    facts: dict[str, Any]
    run: dict[str, Any]
    out: Path

    @property
    def loss(self) -> float:
        """Mean validation loss at the end, of a token in nats, or of what else is trained for."""
        value: float = self.facts["validation"]["loss"]
        return value

    @property
    def diverged(self) -> dict[str, Any] | None:
        """Where training diverged, None where it did not.

        Step, loss and gradient norm where they were not finite; the model is that of step ``back``, of the last full
        tenth of the run. Or step and validation loss of the end, which is above ``uniform``, that of a uniform guess.
        """
        found: dict[str, Any] | None = self.facts["diverged"]
        return found

    @property
    def complaint(self) -> str:
        """What is to be said of a run that diverged; empty of one that did not."""
        return _complaint(self.diverged) if self.diverged else ""


class Engine:
    """A pre-training; a run of another kind does some steps in its own way.

    Attributes:
        file: what says in the output how it was made.
        stage: what the training is called while it runs.
        at: the run, once it has begun.
    """

    file: ClassVar[str] = "pretraining.json"
    stage: ClassVar[str] = "Pre-train"

    at: Run | None = None

    # ---------------------------------------------------------------- the steps

    def prepare(self, recipe: Any, advance: Callable[[int], None] = lambda _: None) -> Prepared:
        """Find or make all that is needed before a model is there; see `lowdim.train.pretrain.prepare.prepare`."""
        return prepare(recipe, advance)

    def begin(self, prepared: Prepared) -> Run:
        """Return the run at its first step."""
        recipe = prepared.recipe
        model, copies = network.make(recipe, prepared.config, prepared.source, prepared.device)
        recipe.optimizer.prepare_(model)
        spread = network.spread(model, recipe) if ranks.active() or recipe.parallel == "fsdp" else model
        optimizer = recipe.optimizer.build(spread)
        riders = network.riders(prepared, spread, optimizer)
        return Run(prepared, spread, optimizer, riders, copies, NextToken(), self.stage)

    def plan(
        self, prepared: Prepared, run: Run, seconds: float | None = None, memory: int | None = None
    ) -> PretrainingPlan:
        """Return the plan; ``seconds`` are those of a step."""
        return planned(prepared, seconds, memory, layers.notes(prepared, run))

    def ready(self, prepared: Prepared, run: Run, directory: Directory | None, out: Path, progress: Progress) -> None:
        """Do what is done once, before the first step."""

    def facts(self, prepared: Prepared, run: Run) -> dict[str, Any]:
        """Return what is said of the run beside what is said of every one."""
        loss = run.curve[-1]["loss"]
        found = {"loss": loss, "perplexity": math.exp(min(loss, 700.0)), "sequences": len(prepared.held)}
        parameters = {"all": prepared.weights[0], "blocks": prepared.weights[1]}
        return {"parameters": parameters, "validation": found, **layers.facts(prepared, run)}

    def measured(self, prepared: Prepared, run: Run, peak: float) -> dict[str, Any]:
        """Return what is not reproducible of the training alone."""
        each, rate = prepared.flops, run.rate
        return {
            "tokens_per_s": None if math.isnan(rate) else round(rate, 1),
            "flops_per_token": each,
            "peak_flops_per_s": peak,
            "mfu": None if math.isnan(rate) else round(rate * each / peak, 4),
        }

    def model(self, prepared: Prepared, run: Run) -> Any:
        """Return the trained model in one piece, on the process that writes; every process calls it."""
        plain = None
        if prepared.recipe.parallel == "fsdp" and ranks.rank() == 0:
            plain = network.make(prepared.recipe, prepared.config, prepared.source, torch.device("cpu"))[0]
        return whole(run.model, plain)

    def write(self, directory: Directory, prepared: Prepared, model: Any, facts: dict[str, Any]) -> dict[str, Any]:
        """Write the directory, weights in the precision that the model computes with; return the facts."""
        place = self._made(directory, prepared, model)
        facts |= layers.read_back(place, facts)
        for path in sorted(place.iterdir()):
            directory.copy(path)
        shutil.rmtree(place)
        return facts

    def keep(self, directory: Directory | None, prepared: Prepared, run: Run) -> None:
        """Let the model stay in ``checkpoints`` as it is now, its config last; every process calls it."""
        model = self.model(prepared, run)
        if directory is None:
            return
        place = self._made(directory, prepared, copy.deepcopy(model))
        inside = directory.partial / "checkpoints" / f"step-{run.loop.step}"
        inside.mkdir(parents=True, exist_ok=True)
        for path in sorted(place.iterdir(), key=lambda path: (path.name == "config.json", path)):
            directory.copy(path, place=inside)
        shutil.rmtree(place)

    def _made(self, directory: Directory, prepared: Prepared, model: Any) -> Path:
        """Write the model as the recipe has it, as factors or a stock one; see `stock`."""
        if prepared.recipe.factors.written == "factors":
            return save_factors(model.eval(), directory.partial / _STOCK, prepared.tokenizer, overwrite=True)
        dense_(model)
        return self.stock(directory, prepared, model)

    def stock(self, directory: Directory, prepared: Prepared, model: Any) -> Path:
        """Write model and tokenizer as Transformers does into a directory inside of that of the run; return it."""
        place = directory.partial / _STOCK
        shutil.rmtree(place, ignore_errors=True)
        model.config.use_cache = True
        with quiet():
            save_model(model.eval(), prepared.tokenizer, place)
        return place

    # ---------------------------------------------------------------- from the recipe to the output

    def run(
        self,
        recipe: Any,
        out: Path,
        *,
        resume: bool,
        overwrite: bool,
        progress: Progress,
        announce: Callable[[str], None],
    ) -> Result:
        """Train and write; see `lowdim.train.pretrain.api.pretrain`.

        Raises:
            LowdimError: anything that the caller can put right.
        """
        target = out.resolve()
        with together(recipe), told_of_the_dead(target, self._place):
            if resume and not overwrite and (target / self.file).exists():
                return self._finished(recipe, target)
            directory = first(lambda: Directory(target, overwrite, resume))
            try:
                return self._run(recipe, target, directory, progress, announce)
            finally:
                if directory is not None:
                    directory.close()

    def _place(self) -> str:
        if self.at is None:
            return "before the first step"
        step = self.at.loop.step
        return "after the last step" if step == self.at.steps else f"so that step {step + 1} came to no end"

    def timed(self, recipe: Any, progress: Progress) -> PretrainingPlan:
        """Return the plan with the time of a step on this machine; nothing is written but tokens to the cache."""
        with together(recipe):
            prepared = self._prepared(recipe, progress)
            run = self.begin(prepared)
            seconds = []
            with torch.random.fork_rng([prepared.device] if prepared.device.type == "cuda" else []):
                for _ in range(3):
                    begun = time.perf_counter()
                    run.loop.run(run.batches.step(0))
                    seconds.append(time.perf_counter() - begun)
            return self.plan(prepared, run, min(seconds), speed.memory(prepared.device))

    def _prepared(self, recipe: Any, progress: Progress) -> Prepared:
        """Prepare on the first process, which makes the tokens, then on the others, which find them."""

        def made() -> Prepared:
            with progress.stage("Tokenise", 0, "documents") as stage:
                return self.prepare(recipe, stage.advance)

        return first(made) or self.prepare(recipe)

    def _run(
        self,
        recipe: Pretraining,
        out: Path,
        directory: Directory | None,
        progress: Progress,
        announce: Callable[[str], None],
    ) -> Result:
        clock, fresh = Clock(), directory is not None and not directory.state
        with clock.stage("Prepare"):
            try:
                prepared = self._prepared(recipe, progress)
                first(lambda: _started(directory, prepared))
                self.at = run = self.begin(prepared)
                announce(self.plan(prepared, run).render())
                peak = _peak(prepared)
            except LowdimError:
                if directory is not None and fresh:
                    directory.reset()
                raise
            self.ready(prepared, run, directory, out, progress)
        partial = out.with_name(f"{out.name}.partial")
        checkpoints = Checkpoints(partial, directory, recipe.parallel == "fsdp")
        if not run.restore(checkpoints) and network.replaces(prepared.recipe, prepared.source):
            run.jump = self._jump(prepared, run)
            announce(
                f"The new placement takes the validation loss from {run.jump['before']:.4f} to {run.jump['after']:.4f}"
            )
        jump = {} if run.jump is None else {"jump": run.jump}
        file, board = (out.with_name(f"{out.name}{end}") for end in (".log.jsonl", ".tensorboard"))
        if each := self.measured(prepared, run, peak).get("flops_per_token"):
            run.share = each / peak
        writes = directory is not None
        log = Log(file if writes else None, board if writes and recipe.tensorboard else None, run.loop.step)
        with log:
            with clock.stage(self.stage):
                run, diverged = self._trained(prepared, run, checkpoints, log, progress, directory)
            with clock.stage("Evaluate"):
                run.end(log)
        if diverged is None:
            diverged = run.lost(prepared.config.get_text_config(decoder=True).vocab_size)
            if diverged is not None:
                warnings.warn(_complaint(diverged), stacklevel=3)
        facts = {**self._facts(prepared, run, diverged), **jump}
        found = {**self.measured(prepared, run, max(peak, _peak(prepared))), **_machine(prepared)}
        model = self.model(prepared, run)
        if directory is not None:
            assert model is not None
            facts = self.write(directory, prepared, model, facts)
            directory.write_json(self.file, facts)
            checkpoints.drop()
            directory.finish()
            sidecar.write_sidecar(out, {"stages": clock.stages, **found})
        ranks.barrier()
        return Result(facts, {"stages": clock.stages, **found}, out)

    def _jump(self, prepared: Prepared, run: Run) -> dict[str, float]:
        """Return the validation loss of the model as it came, and with its new placement, before the first step."""
        bare = replace(prepared, recipe=prepared.recipe.model_copy(update={"placement": None}))
        return {"before": self.begin(bare).judge()["loss"], "after": run.judge()["loss"]}

    def _trained(
        self,
        prepared: Prepared,
        run: Run,
        checkpoints: Checkpoints,
        log: Log,
        progress: Progress,
        directory: Directory | None,
    ) -> tuple[Run, dict[str, Any] | None]:
        """Train to the end, or until it diverges; return the run as it then is."""
        try:
            run.train(checkpoints, log, progress, lambda: self.keep(directory, prepared, run))
            return run, None
        except DivergedError as error:
            run = self.begin(prepared)
            run.restore(checkpoints, good=True)
            diverged = {**error.facts, "back": run.loop.step}
            warnings.warn(_complaint(diverged), stacklevel=4)
            return run, diverged

    def _facts(self, prepared: Prepared, run: Run, diverged: dict[str, Any] | None) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            **{key: value for key, value in prepared.fingerprint().items() if key != "data"},
            "data": prepared.facts,
            "steps": run.loop.step,
            run.goal.unit: run.seen,
            "curve": run.curve,
            **self.facts(prepared, run),
            "diverged": diverged,
        }

    def _finished(self, recipe: Pretraining, out: Path) -> Result:
        """Return the result of an earlier run of the same recipe and text, which is complete already."""
        facts = read_json(out / self.file)
        asked = self.prepare(recipe).fingerprint()
        found = {"recipe": facts.get("recipe"), "model": facts.get("model"), "data": facts["data"]["hash"]}
        refuse_differences(f"the finished run in {out}", found, {key: asked[key] for key in found})
        if ranks.rank() == 0:
            tidy(out)
        ranks.barrier()
        return Result(facts, {}, out)


def _complaint(wrong: dict[str, Any]) -> str:
    """Say how a run diverged, what the output is, and what to do."""
    if "uniform" in wrong:
        said = (
            f": the validation loss of step {wrong['step']}, the last, is {wrong['loss']:.4g}, above the "
            f"{wrong['uniform']:.4g} of a uniform guess; the output is that model"
        )
    else:
        said = f" at step {wrong['step']} (loss {wrong['loss']}, gradient norm {wrong['norm']})"
        said += f"; the model went back to step {wrong['back']}"
    return f"training diverged{said}. Take a lower optimizer.lr, a longer warm-up, or clip."


def _started(directory: Directory | None, prepared: Prepared) -> None:
    assert directory is not None
    directory.begin(prepared.fingerprint())
    each = 2 if prepared.recipe.precision == "pure-bfloat16" else 4
    models = 4 + (prepared.steps - 1) // (prepared.recipe.keep or prepared.steps)
    directory.require_space(
        models * each * prepared.weights[0]
    )  # weights and two moments, twice the weights at the end


def _peak(prepared: Prepared) -> float:
    """Return the FLOPs a second that all processes do at best; they measure at once, as they compute at once."""
    dtype = torch.float32 if prepared.recipe.precision == "float32" else torch.bfloat16
    ranks.barrier()
    return sum(ranks.gathered(speed.matmul_peak(dtype, prepared.device)))


def _machine(prepared: Prepared) -> dict[str, Any]:
    return {
        "peak_bytes": ranks.gathered(speed.memory(prepared.device)),
        "processes": ranks.size(),
        "device": prepared.device.type,
        "machine": machine(),
        "command": sidecar.command(),
    }

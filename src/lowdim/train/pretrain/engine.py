"""What a run does from its recipe to its output, in steps that a run of another kind does in its own way."""

from __future__ import annotations

import math
import re
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
import torch.distributed as dist

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

SCHEMA = 1
_STOCK = ".stock"
_ADVICE = "Try a lower optimizer.lr, a longer warm-up or clip"
_PEER_GONE = re.compile(r"gloo|nccl|connection|peer|timed? ?out|socket", re.IGNORECASE)

T = TypeVar("T")


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
        wrong = self.diverged
        if wrong is None:
            return ""
        if "uniform" in wrong:
            return f"{_above(wrong)}; the output is that model. Lower optimizer.lr, clip, or warm up longer."
        return (
            f"training diverged at step {wrong['step']} (loss {wrong['loss']}, gradient norm {wrong['norm']}); "
            f"the output is the model of step {wrong['back']}. Lower optimizer.lr, clip, or warm up longer."
        )


class Engine:
    """A pre-training; a run of another kind does some steps in its own way.

    Attributes:
        file: what says in the output how it was made.
        stage: what the training is called while it runs.
    """

    file: ClassVar[str] = "pretraining.json"
    stage: ClassVar[str] = "Pre-train"

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
        weights = None if prepared.recipe.rank is None else prepared.weights[0]
        each, rate = speed.flops_per_token(prepared.config, prepared.recipe.length, weights), run.rate
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
        if prepared.recipe.factors.written == "factors":
            place = save_factors(model.eval(), directory.partial / _STOCK, prepared.tokenizer, overwrite=True)
        else:
            dense_(model)
            place = self.stock(directory, prepared, model)
        facts |= layers.read_back(place, facts)
        for path in sorted(place.iterdir()):
            directory.copy(path)
        shutil.rmtree(place)
        return facts

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
        with together(recipe):
            if resume and not overwrite and (target / self.file).exists():
                return self._finished(recipe, target)
            directory = _first(lambda: Directory(target, overwrite, resume))
            try:
                return self._run(recipe, target, directory, progress, announce)
            finally:
                if directory is not None:
                    directory.close()

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

        return _first(made) or self.prepare(recipe)

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
                _first(lambda: _started(directory, prepared))
                run = self.begin(prepared)
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
                run, diverged = self._trained(prepared, run, checkpoints, log, progress, out)
            with clock.stage("Evaluate"):
                run.end(log)
        if diverged is None:
            diverged = run.lost(prepared.config.get_text_config(decoder=True).vocab_size)
            if diverged is not None:
                warnings.warn(f"{_above(diverged)}. {_ADVICE}", stacklevel=3)
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
        self, prepared: Prepared, run: Run, checkpoints: Checkpoints, log: Log, progress: Progress, out: Path
    ) -> tuple[Run, dict[str, Any] | None]:
        """Train to the end, or until it diverges; return the run as it then is."""
        try:
            run.train(checkpoints, log, progress)
            return run, None
        except DivergedError as error:
            run = self.begin(prepared)
            run.restore(checkpoints, good=True)
            back = f"went back to step {run.loop.step}"
            warnings.warn(f"{error}; the model {back}. {_ADVICE}", stacklevel=4)
            return run, {**error.facts, "back": run.loop.step}
        except RuntimeError as error:
            if not ranks.active() or isinstance(error, torch.OutOfMemoryError) or not _PEER_GONE.search(str(error)):
                raise
            raise LowdimError(
                f"another process of this run has ended, so that step {run.done + 1} came to no end "
                f"({str(error).splitlines()[0][:200]}). What was saved stays in {out}.partial: resume from there."
            ) from error

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


@contextmanager
def together(recipe: Pretraining) -> Iterator[None]:
    """Join the other processes; shards need a group even of one."""
    alone = recipe.parallel == "fsdp" and not dist.is_initialized()
    with ranks.launched():
        if alone := alone and not dist.is_initialized():
            dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
        try:
            yield
        finally:
            if alone:
                dist.destroy_process_group()


def _above(wrong: dict[str, Any]) -> str:
    """Say that a run ended above the loss of a uniform guess."""
    return (
        f"training diverged: the validation loss of step {wrong['step']}, the last, is {wrong['loss']:.4g}, above the "
        f"{wrong['uniform']:.4g} of a uniform guess"
    )


def _first(work: Callable[[], T]) -> T | None:
    """Return what the first process makes, None on others; what it refuses is refused by all."""
    made: T | None = None
    wrong: LowdimError | None = None
    if ranks.rank() == 0:
        try:
            made = work()
        except LowdimError as error:
            wrong = error
    if (told := ranks.broadcast(wrong)) is not None:
        raise told
    return made


def _started(directory: Directory | None, prepared: Prepared) -> None:
    assert directory is not None
    directory.begin(prepared.fingerprint())
    each = 2 if prepared.recipe.precision == "pure-bfloat16" else 4
    directory.require_space(4 * each * prepared.weights[0])  # weights and two moments, twice the weights at the end


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

"""The front door: `pretrain` and `plan`."""

from __future__ import annotations

import math
import re
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from lowdim.core.errors import LowdimError
from lowdim.core.files import read_json
from lowdim.core.machine import machine
from lowdim.core.progress import Progress, Silent
from lowdim.models import ranks
from lowdim.models.load import quiet
from lowdim.models.save import save_model
from lowdim.runs import sidecar
from lowdim.runs.clock import Clock, peak_memory
from lowdim.runs.directory import Directory, tidy
from lowdim.runs.fingerprint import refuse_differences
from lowdim.train.pretrain import network, speed
from lowdim.train.pretrain.checkpoint import Checkpoints, whole
from lowdim.train.pretrain.log import Log
from lowdim.train.pretrain.plan import PretrainingPlan, planned
from lowdim.train.pretrain.prepare import Prepared, prepare
from lowdim.train.pretrain.recipe import Pretraining
from lowdim.train.pretrain.run import DivergedError, Run

FILE, SCHEMA = "pretraining.json", 1
_STOCK = ".stock"
_PEER_GONE = re.compile(r"gloo|nccl|connection|peer|timed? ?out|socket", re.IGNORECASE)

T = TypeVar("T")


@dataclass(frozen=True)
class PretrainingResult:
    """What a run made.

    Attributes:
        facts: what ``pretraining.json`` holds: equal for equal recipes, texts and versions.
        run: what ``OUT.run.json`` holds: times, speed, memory, the machine; empty for a run that was finished before.
        out: the output directory.
    """

    facts: dict[str, Any]
    run: dict[str, Any]
    out: Path

    @property
    def loss(self) -> float:
        """Mean loss of a validation token at the end, nats."""
        value: float = self.facts["validation"]["loss"]
        return value

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        value: float = self.facts["validation"]["perplexity"]
        return value

    @property
    def diverged(self) -> dict[str, Any] | None:
        """Step, loss and gradient norm where training diverged; the model is that of the last state saved before."""
        found: dict[str, Any] | None = self.facts["diverged"]
        return found


def pretrain(
    recipe: Pretraining,
    *,
    out: str | Path,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    announce: Callable[[str], None] | None = None,
) -> PretrainingResult:
    """Train a causal language model on text, from nothing or on, and write a stock Hugging Face directory.

    Under ``torchrun`` all processes call it alike; the first one writes. Beside ``out`` grow ``OUT.log.jsonl``, a line
    for every step, and ``OUT.run.json``. What diverges ends with the state that was saved last, and a warning.

    Args:
        recipe: what to do.
        out: output directory. It appears when it is complete; until then there is ``OUT.partial``.
        resume: go on from ``OUT.partial``; the result is the same to the byte as that of an uninterrupted run on as
            many processes.
        overwrite: replace an existing ``out``, once the new one is complete.
        progress: told of stages and their advance.
        announce: given the plan as text before the work begins.

    Raises:
        LowdimError: anything that the caller can put right: recipe, text, tokenizer, model, output directory; or
            another process has died.
    """
    target = Path(out).resolve()
    with _together(recipe):
        if resume and not overwrite and (target / FILE).exists():
            return _finished(recipe, target)
        directory = _first(lambda: Directory(target, overwrite, resume))
        try:
            return _run(recipe, target, directory, progress or Silent(), announce or (lambda _: None))
        finally:
            if directory is not None:
                directory.close()


def plan(recipe: Pretraining, progress: Progress | None = None) -> PretrainingPlan:
    """Return what a pre-training would do, timed on this machine; nothing is written but tokens to the cache.

    Raises:
        LowdimError: as `pretrain`.
    """
    with _together(recipe):
        prepared = _prepared(recipe, progress or Silent())
        run = _begin(prepared)
        seconds = []
        with torch.random.fork_rng([prepared.device] if prepared.device.type == "cuda" else []):
            for _ in range(3):
                begun = time.perf_counter()
                run.loop.run(run.batches.step(0))
                seconds.append(time.perf_counter() - begun)
        return planned(prepared, min(seconds), _memory(prepared.device))


@contextmanager
def _together(recipe: Pretraining) -> Iterator[None]:
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


def _prepared(recipe: Pretraining, progress: Progress) -> Prepared:
    """Prepare on the first process, which makes the tokens, then on the others, which find them."""

    def made() -> Prepared:
        with progress.stage("Tokenise", 0, "documents") as stage:
            return prepare(recipe, stage.advance)

    return _first(made) or prepare(recipe)


def _begin(prepared: Prepared) -> Run:
    recipe = prepared.recipe
    model, copies = network.make(recipe, prepared.config, prepared.source, prepared.device)
    spread = network.spread(model, recipe) if ranks.active() or recipe.parallel == "fsdp" else model
    return Run(recipe, prepared.steps, spread, copies, prepared.text, prepared.held, prepared.device)


def _run(
    recipe: Pretraining, out: Path, directory: Directory | None, progress: Progress, announce: Callable[[str], None]
) -> PretrainingResult:
    clock, fresh = Clock(), directory is not None and not directory.state
    with clock.stage("Prepare"):
        try:
            prepared = _prepared(recipe, progress)
            _first(lambda: _started(directory, prepared))
            announce(planned(prepared).render())
            run, peak = _begin(prepared), _peak(prepared)
        except LowdimError:
            if directory is not None and fresh:
                directory.reset()
            raise
    partial = out.with_name(f"{out.name}.partial")
    checkpoints = Checkpoints(partial, directory, recipe.parallel == "fsdp")
    run.restore(checkpoints)
    file, board = (out.with_name(f"{out.name}{end}") for end in (".log.jsonl", ".tensorboard"))
    writes = directory is not None
    log = Log(file if writes else None, board if writes and recipe.tensorboard else None, run.loop.step)
    with log:
        with clock.stage("Pre-train"):
            run, diverged = _trained(prepared, run, checkpoints, log, progress, out)
        with clock.stage("Evaluate"):
            run.end(log)
    facts = _facts(prepared, run, diverged)
    measured = _measured(prepared, run, clock, max(peak, _peak(prepared)))
    model = whole(run.model, _plain(prepared))
    if directory is not None:
        assert model is not None
        _write(directory, prepared, model, facts)
        checkpoints.drop()
        directory.finish()
        sidecar.write_sidecar(out, measured)
    ranks.barrier()
    return PretrainingResult(facts, measured, out)


def _started(directory: Directory | None, prepared: Prepared) -> None:
    assert directory is not None
    directory.begin(prepared.fingerprint())
    each = 2 if prepared.recipe.precision == "pure-bfloat16" else 4
    directory.require_space(4 * each * prepared.weights[0])  # weights and two moments, twice the weights at the end


def _trained(
    prepared: Prepared, run: Run, checkpoints: Checkpoints, log: Log, progress: Progress, out: Path
) -> tuple[Run, dict[str, Any] | None]:
    """Train to the end, or until it diverges; return the run as it then is."""
    try:
        run.train(checkpoints, log, progress)
        return run, None
    except DivergedError as error:
        run = _begin(prepared)
        run.restore(checkpoints)
        back = f"went back to step {run.loop.step}"
        warnings.warn(f"{error}; the model {back}. Try a lower optimizer.lr, a longer warm-up or clip", stacklevel=4)
        return run, {**error.facts, "back": run.loop.step}
    except RuntimeError as error:
        if not ranks.active() or isinstance(error, torch.OutOfMemoryError) or not _PEER_GONE.search(str(error)):
            raise
        raise LowdimError(
            f"another process of this run has ended, so that step {run.done + 1} came to no end "
            f"({str(error).splitlines()[0][:200]}). What was saved stays in {out}.partial: resume from there."
        ) from error


def _plain(prepared: Prepared) -> Any:
    """Return a model in one piece for the weights of shards to go to, on the process that writes."""
    if prepared.recipe.parallel != "fsdp" or ranks.rank() != 0:
        return None
    return network.make(prepared.recipe, prepared.config, prepared.source, torch.device("cpu"))[0]


def _facts(prepared: Prepared, run: Run, diverged: dict[str, Any] | None) -> dict[str, Any]:
    loss = run.curve[-1]["loss"]
    return {
        "schema": SCHEMA,
        **{key: value for key, value in prepared.fingerprint().items() if key != "data"},
        "data": prepared.facts,
        "parameters": {"all": prepared.weights[0], "blocks": prepared.weights[1]},
        "steps": run.loop.step,
        "tokens": run.seen,
        "curve": run.curve,
        "validation": {"loss": loss, "perplexity": math.exp(min(loss, 700.0)), "sequences": len(prepared.held)},
        "diverged": diverged,
    }


def _peak(prepared: Prepared) -> float:
    """Return the FLOPs a second that all processes do at best; they measure at once, as they compute at once."""
    dtype = torch.float32 if prepared.recipe.precision == "float32" else torch.bfloat16
    ranks.barrier()
    return sum(ranks.gathered(speed.matmul_peak(dtype, prepared.device)))


def _measured(prepared: Prepared, run: Run, clock: Clock, peak: float) -> dict[str, Any]:
    """Return what is not reproducible."""
    each, rate = speed.flops_per_token(prepared.config, prepared.recipe.length), run.tokens_per_second
    return {
        "stages": clock.stages,
        "tokens_per_s": None if math.isnan(rate) else round(rate, 1),
        "flops_per_token": each,
        "peak_flops_per_s": peak,
        "mfu": None if math.isnan(rate) else round(rate * each / peak, 4),
        "peak_bytes": ranks.gathered(_memory(prepared.device)),
        "processes": ranks.size(),
        "device": prepared.device.type,
        "machine": machine(),
        "command": sidecar.command(),
    }


def _memory(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory()


def _write(directory: Directory, prepared: Prepared, model: Any, facts: dict[str, Any]) -> None:
    """Write the stock directory: weights in the precision that the model computes with, config, tokenizer."""
    place = directory.partial / _STOCK
    shutil.rmtree(place, ignore_errors=True)
    model.config.use_cache = True
    with quiet():
        save_model(model.eval(), prepared.tokenizer, place)
    for path in sorted(place.iterdir()):
        directory.copy(path)
    shutil.rmtree(place)
    directory.write_json(FILE, facts)


def _finished(recipe: Pretraining, out: Path) -> PretrainingResult:
    """Return the result of an earlier run of the same recipe and text, which is complete already."""
    facts = read_json(out / FILE)
    asked = prepare(recipe).fingerprint()
    found = {"recipe": facts.get("recipe"), "model": facts.get("model"), "data": facts["data"]["hash"]}
    refuse_differences(f"the finished run in {out}", found, {key: asked[key] for key in found})
    if ranks.rank() == 0:
        tidy(out)
    ranks.barrier()
    return PretrainingResult(facts, {}, out)

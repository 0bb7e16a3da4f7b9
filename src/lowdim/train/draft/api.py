"""The front door: `distill_draft` and `plan`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lowdim.core.errors import LowdimError
from lowdim.core.files import read_json
from lowdim.core.machine import machine
from lowdim.core.progress import Progress, Silent
from lowdim.models import ranks
from lowdim.models.load import load, quiet
from lowdim.models.save import save_model
from lowdim.runs import sidecar
from lowdim.runs.clock import Clock, peak_memory
from lowdim.runs.directory import Directory, tidy
from lowdim.runs.fingerprint import refuse_differences
from lowdim.train.compare.store import CHECKPOINT, Store
from lowdim.train.draft.job import TARGET, Done, Job, Training, facts, jobs, reference_for
from lowdim.train.draft.measure import measure
from lowdim.train.draft.plan import DraftPlan
from lowdim.train.draft.prepare import Prepared, prepare
from lowdim.train.draft.recipe import Drafting
from lowdim.train.pretrain.network import narrow_

FILE, SCHEMA = "drafting.json", 1
START = "start"
"""The row of a draft that was not trained."""
_STOCK = ".stock"


@dataclass(frozen=True)
class DraftingResult:
    """What a run made.

    Attributes:
        facts: what ``drafting.json`` holds: equal for equal recipes, models, texts and versions.
        run: what ``OUT.run.json`` holds: times, memory, the machine; empty for a run that was finished before.
        out: the output directory.
    """

    facts: dict[str, Any]
    run: dict[str, Any]
    out: Path

    @property
    def measured(self) -> dict[str, dict[str, Any]]:
        """What was measured of each draft, by method ("start": before training) and text."""
        found: dict[str, dict[str, Any]] = self.facts["measured"]
        return found


def distill_draft(
    recipe: Drafting,
    *,
    out: str | Path,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    announce: Callable[[str], None] | None = None,
) -> DraftingResult:
    """Train a draft model for speculative decoding, and measure what its target accepts.

    ``out`` is the draft, as stock Transformers loads it, with the target's tokenizer where it has none of its own. The
    drafts of rivals are in ``out/METHOD``, a target that was tuned in ``out/target``; ``out/drafting.json``
    holds what was measured.

    Args:
        recipe: what to do.
        out: output directory. It appears when it is complete; until then there is ``OUT.partial``.
        resume: go on from ``OUT.partial``; the result is the same to the byte as that of an uninterrupted run.
        overwrite: replace an existing ``out``, once the new one is complete.
        progress: told of stages and their advance.
        announce: given the plan as text before the work begins.

    Raises:
        LowdimError: anything that the caller can put right: recipe, models, vocabularies, text, output directory; or
            training diverged.
    """
    _alone()
    target = Path(out).resolve()
    if resume and not overwrite and (target / FILE).exists():
        return _finished(recipe, target)
    with Directory(target, overwrite, resume) as directory:
        return _Run(recipe, directory, progress or Silent(), announce or (lambda _: None)).to_disk()


def plan(recipe: Drafting, progress: Progress | None = None) -> DraftPlan:
    """Return what a run would do, timed on this machine; nothing is written but tokens to the cache.

    Raises:
        LowdimError: as `distill_draft`.
    """
    _alone()
    prepared = _prepared(recipe, progress or Silent())
    return _planned(prepared)


def _alone() -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 or ranks.active():
        raise LowdimError("drafts are trained by one process. Start it without torchrun.")


def _prepared(recipe: Drafting, progress: Progress) -> Prepared:
    with progress.stage("Tokenise", 0, "documents") as stage:
        return prepare(recipe, stage.advance)


def _planned(prepared: Prepared) -> DraftPlan:
    """Time a step of every training, on networks that are thrown away."""
    seconds, networks = dict[str, float](), _Networks(prepared, None)
    todo = jobs(prepared)
    for name, job in todo.items():
        seconds[name] = Training(prepared, job, *networks.fresh(name), networks.beside(job)).time_step()
    target, draft = (sum(p.numel() for p in networks.frozen(name).parameters()) for name in (TARGET, START))
    recipe = prepared.recipe
    return DraftPlan(
        target,
        draft,
        words=prepared.words,
        steps={name: job.steps for name, job in todo.items()},
        seconds=seconds,
        tokens=recipe.batch * recipe.length,
        sequences=len(prepared.text),
        samples={name: len(sample.rows) for name, sample in prepared.samples.items()},
        memory=torch.cuda.max_memory_allocated() if prepared.device.type == "cuda" else peak_memory(),
    )


class _Networks:
    """Makes the networks of a run, with the weights that were trained, if they were; None stands for none yet."""

    def __init__(self, prepared: Prepared, store: Store | None) -> None:
        self.prepared, self._store = prepared, store
        self._frozen: dict[str, PreTrainedModel] = {}

    def fresh(self, name: str) -> tuple[PreTrainedModel, dict[nn.Parameter, Tensor]]:
        """Return a network as training begins with it, and the fp32 weights of one in bfloat16."""
        prepared, recipe = self.prepared, self.prepared.recipe
        if name == TARGET:
            model = load(prepared.target.path, torch.float32, "cpu", recipe.trust_remote_code)
        else:
            model = prepared.start.make(recipe)
        return self._placed(model)

    def frozen(self, name: str) -> PreTrainedModel:
        """Return a network as training left it, or as it began if it has not been trained; it stays in memory."""
        if name not in self._frozen:
            model, copies = self.fresh(name)
            trained = None if self._store is None else self._store.get(_file(name))
            for key, parameter in model.named_parameters():
                if trained is not None:
                    parameter.data.copy_(trained[key])
            del copies
            self._frozen[name] = model.eval().requires_grad_(False)
        return self._frozen[name]

    def beside(self, job: Job) -> dict[str, PreTrainedModel]:
        """Return the networks that a training asks."""
        reference = reference_for(job, self.prepared)
        names = {"target": TARGET, "reference": reference or START}
        return {role: self.frozen(names[role]) for role in job.objective.asks}

    def drop(self, name: str) -> None:
        """Let a network that stays in memory go."""
        self._frozen.pop(name, None)

    def _placed(self, model: PreTrainedModel) -> tuple[PreTrainedModel, dict[nn.Parameter, Tensor]]:
        device = self.prepared.device
        nn.Module.to(model, device)
        return model, narrow_(model, keep=True) if self.prepared.recipe.precision == "bfloat16" else {}


def _file(name: str) -> str:
    return f".{name}.safetensors"


class _Run:
    """One call of `distill_draft`."""

    def __init__(
        self, recipe: Drafting, directory: Directory, progress: Progress, announce: Callable[[str], None]
    ) -> None:
        self.recipe, self.directory, self.progress, self.announce = recipe, directory, progress, announce
        self.clock, self.store = Clock(), Store(directory)

    def to_disk(self) -> DraftingResult:
        """Do all that is left to do."""
        directory, fresh = self.directory, not self.directory.state
        try:
            with self.clock.stage("Prepare"):
                prepared = _prepared(self.recipe, self.progress)
                directory.begin(prepared.fingerprint())
            with self.clock.stage("Plan"):
                if "plan" not in directory.state:
                    directory.state["plan"] = (made := _planned(prepared)).to_dict()
                    directory.require_space(4 * (made.draft * (5 + 2 * len(self.recipe.methods)) + made.target))
                    directory.save_state()
        except LowdimError:
            if fresh:
                directory.reset()
            raise
        self.announce(DraftPlan(**directory.state["plan"]).render())
        networks = _Networks(prepared, self.store)
        done = {name: self._trained(job, prepared, networks) for name, job in jobs(prepared).items()}
        measured = self._measured(prepared, networks)
        told = {
            "schema": SCHEMA,
            **prepared.fingerprint(),
            "data": prepared.facts,
            "words": prepared.words,
            "weights": {key: directory.state["plan"][key] for key in ("target", "draft")},
            "trained": done,
            "measured": measured,
        }
        with self.clock.stage("Write"):
            self._write(prepared, networks, told)
        run = {"stages": self.clock.stages, "peak_bytes": peak_memory(), "machine": machine()}
        run |= {"device": prepared.device.type, "plan": directory.state["plan"], "command": sidecar.command()}
        sidecar.write_sidecar(directory.out, run)
        return DraftingResult(told, run, directory.out)

    def _trained(self, job: Job, prepared: Prepared, networks: _Networks) -> dict[str, Any]:
        """Train a network, unless an earlier attempt has; return what its training was."""
        done: dict[str, Any] = self.directory.state.setdefault("done", {})
        if job.name not in done:
            with self.clock.stage(f"Train {job.name}"):
                training = Training(prepared, job, *networks.fresh(job.name), networks.beside(job))
                found: Done = training.run(self.store, self.progress)
                self.store.put(_file(job.name), training.weights())
            networks.drop(job.name)
            done[job.name] = facts(found)
            self.directory.save_state()
            self.store.drop(CHECKPOINT)
        found_: dict[str, Any] = done[job.name]
        return found_

    def _measured(self, prepared: Prepared, networks: _Networks) -> dict[str, Any]:
        kept: dict[str, Any] = self.directory.state.setdefault("measured", {})
        names = [START, *self.recipe.names]
        with (
            self.clock.stage("Measure"),
            self.progress.stage("Measure acceptance", len(names) * len(prepared.samples), "texts") as stage,
        ):
            for name in names:
                if name in kept:
                    stage.advance(len(prepared.samples))
                    continue
                kept[name] = measure(prepared, networks.frozen(TARGET), networks.frozen(name), stage)
                self.directory.save_state()
        return {name: kept[name] for name in names}

    def _write(self, prepared: Prepared, networks: _Networks, told: dict[str, Any]) -> None:
        """Write the draft, the drafts of rivals and a tuned target as stock directories."""
        tokenizer = prepared.start.tokenizer or prepared.tokenizer
        first, *rivals = self.recipe.names
        for name in [*rivals, *([TARGET] if self.recipe.tune.steps else [])]:
            place = self._stock(networks.frozen(name), prepared.tokenizer if name == TARGET else tokenizer)
            shutil.rmtree(self.directory.partial / name, ignore_errors=True)
            os.rename(place, self.directory.partial / name)
        place = self._stock(networks.frozen(first), tokenizer)
        for path in sorted(place.iterdir()):
            self.directory.copy(path)
        shutil.rmtree(place)
        self.directory.write_json(FILE, told)
        self.directory.finish()

    def _stock(self, model: PreTrainedModel, tokenizer: Any) -> Path:
        place = self.directory.partial / _STOCK
        shutil.rmtree(place, ignore_errors=True)
        model.config.use_cache = True
        with quiet():
            save_model(model, tokenizer, place)
        return place


def _finished(recipe: Drafting, out: Path) -> DraftingResult:
    """Return the result of an earlier run of the same recipe, models and text, which is complete already."""
    told = read_json(out / FILE)
    asked = prepare(recipe).fingerprint()
    found = {key: told.get(key) for key in asked} | {"data": told["data"]["hash"]}
    refuse_differences(f"the finished run in {out}", found, asked)
    tidy(out)
    return DraftingResult(told, {}, out)

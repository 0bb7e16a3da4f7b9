"""A model pruned over a grid of sparsities, each asked the same hard questions as the dense one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from lowdim.core.errors import CheckpointError, LowdimError
from lowdim.core.files import read_json
from lowdim.core.machine import machine
from lowdim.core.progress import Progress, Silent
from lowdim.data.calibration import positions
from lowdim.data.windows import Windows
from lowdim.models.disk import manifest
from lowdim.models.walk.opened import Opened, open_model
from lowdim.models.walk.stream import watched
from lowdim.pipeline.ahead import asked_tokens, minutes, seconds_per_token
from lowdim.pipeline.recover.api import recover
from lowdim.pipeline.recover.chain import plan as plan_recovery
from lowdim.pipeline.stress.result import Point, render
from lowdim.pipeline.stress.settings import Settings
from lowdim.prune.api import plan as plan_pruning
from lowdim.prune.api import prune
from lowdim.prune.measure import Measured, check_tasks, make_windows, measure, measured_on
from lowdim.runs.directory import Directory
from lowdim.runs.fingerprint import refuse_differences, versions

FILE = "stress.json"
_LONG = 512  # tokens of the sequence that a forward is timed on


def stress(
    settings: Settings,
    out: str | Path,
    *,
    keep: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
    announce: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Prune a model over a grid and ask each the hard questions.

    Args:
        settings: what is pruned, how far, and what is asked.
        out: directory to appear, with ``stress.json``. Until all is measured there is ``OUT.partial``, in which every
            answer is durable.
        keep: leave the pruned models in ``out``; else each goes once it has answered.
        resume: go on from ``OUT.partial``; a finished run of the same settings is returned as it is.
        progress: told of stages and their advance.
        announce: given the plan as text before the work begins.

    Returns:
        What is in ``stress.json``, see `lowdim.pipeline.stress.result.render`.

    Raises:
        LowdimError: the model has no tokenizer, or what pruning, recovery and evaluation raise.
    """
    return _Run(settings, Path(out), keep, progress or Silent(), announce or (lambda _: None)).run(resume)


class _Run:
    def __init__(
        self, settings: Settings, out: Path, keep: bool, progress: Progress, announce: Callable[[str], None]
    ) -> None:
        self.settings, self.out, self.keep, self.progress, self.announce = settings, out, keep, progress, announce

    def run(self, resume: bool) -> dict[str, Any]:
        settings = self.settings
        opened = open_model(settings.model, trust_remote_code=settings.trust_remote_code)
        self.tokenizer = opened.tokenizer()
        if self.tokenizer is None:
            raise CheckpointError(
                f"{settings.model} has no tokenizer beside its weights, so nothing can be asked. Copy its files there."
            )
        self.text = make_windows(settings.measuring(), self.tokenizer, opened.config)
        opened.check_weights()
        assert opened.checkpoint is not None
        fingerprint = {
            "settings": settings.to_dict(),
            "model": opened.checkpoint.fingerprint(),
            "evaluation": measured_on(settings.measuring(), self.text),
            "versions": versions(),
        }
        if resume and (self.out / FILE).exists():
            found = read_json(self.out / FILE)
            refuse_differences(f"the finished run in {self.out}", found["fingerprint"], fingerprint)
            return found
        check_tasks(settings.measuring(), self.tokenizer, opened.config)
        with Directory(self.out, resume=resume) as directory:
            directory.begin(fingerprint)
            if settings.minutes is not None and not directory.state.get("done"):
                self._check_recovery(directory)
            self.announce(self._plan(opened, self.text))
            dense = Measured.from_dict(self._durable(directory, "dense", lambda: self._ask(settings.model).to_dict()))
            points = self._points(directory)
            result = render(settings, dense, points) | {"machine": machine(), "fingerprint": fingerprint}
            directory.write_json(FILE, result)
            directory.finish()
        return read_json(self.out / FILE)

    def _check_recovery(self, directory: Directory) -> None:
        """Refuse what cannot be recovered, such as in too few minutes, before anything is asked or pruned.

        Raises:
            LowdimError: see `lowdim.pipeline.recover.chain.plan`; nothing is left on disk then.
        """
        settings = self.settings
        try:
            plan_recovery(settings.model, settings.pruning(settings.grid[-1]), settings.recovering())
        except LowdimError:
            directory.reset()
            raise

    def _plan(self, opened: Opened, text: Windows | None) -> str:
        """Return the plan: models, hours, disk."""
        settings, config = self.settings, opened.config
        forms = 1 if settings.minutes is None else 2
        models = 1 + forms * len(settings.grid)
        tokens = asked_tokens(settings.asked, self.tokenizer, settings.limit, settings.seed)
        tokens += text.input_ids.numel() if text is not None else 0
        long = min(_LONG, positions(config) or _LONG)
        ids = self.tokenizer("the " * long, return_tensors="pt")["input_ids"][:, :long]
        asking = models * tokens * seconds_per_token(opened, ids)
        pruning = sum(plan_pruning(settings.model, settings.pruning(share)).seconds for share in settings.grid)
        training = 60 * (settings.minutes or 0) * len(settings.grid)
        assert opened.checkpoint is not None
        resident = len(settings.grid) * forms if self.keep else forms
        return (
            f"{models} models, about {minutes(asking + pruning + training)} on this machine and "
            f"{resident * opened.checkpoint.size_bytes / 1e9:.1f} GB of disk:\n"
            f"  asking: {minutes(asking)}, {tokens:,} tokens of questions and text for each model\n"
            f"  pruning: {minutes(pruning)} of forward passes\n"
            f"  training: {minutes(training)}"
        )

    def _durable(self, directory: Directory, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return what is kept under a name, made now if an earlier attempt has not."""
        done: dict[str, Any] = directory.state.setdefault("done", {})
        if name not in done:
            done[name] = make()
            directory.save_state()
        found: dict[str, Any] = done[name]
        return found

    def _points(self, directory: Directory) -> list[Point]:
        forms = ["pruned"] + ["recovered"] * (self.settings.minutes is not None)
        found = []
        with self.progress.stage("Stress", len(self.settings.grid) * len(forms), "models") as stage:
            for share in self.settings.grid:
                for form in forms:
                    name = f"{share:g}-{form}"
                    kept = self._durable(directory, name, partial(self._made, directory, share, form))
                    found.append(Point.from_dict(kept))
                    stage.advance()
                if not self.keep:
                    for form in forms:
                        _remove(directory.partial / _folder(share, form))
        return found

    def _made(self, directory: Directory, share: float, form: str) -> dict[str, Any]:
        """Make a model of the grid, or go on with it, and ask it."""
        settings, pruned = self.settings, directory.partial / _folder(share, "pruned")
        prune(settings.model, settings.pruning(share), out=pruned, resume=True, progress=self.progress)
        place = directory.partial / _folder(share, form)
        if form == "recovered":
            recover(
                pruned,
                settings.recovering(),
                teacher=settings.model,
                out=place,
                resume=True,
                progress=self.progress,
                announce=self.announce,
            )
        zeros = manifest.read(place).sparsity
        return Point(share, form, zeros.prunable if zeros else 0.0, self._ask(str(place))).to_dict()

    def _ask(self, model: str) -> Measured:
        recipe = self.settings.measuring()
        trusted = self.settings.trust_remote_code
        opened = open_model(model, trust_remote_code=trusted)
        forward = watched(opened.stream.forward, len(opened.stream), f"Ask {Path(model).name}", self.progress)
        return measure(forward, recipe, self.tokenizer, self.text, positions(opened.config))


def _folder(share: float, form: str) -> str:
    return f"{form}-{100 * share:g}"


def _remove(place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)
    place.with_name(f"{place.name}.run.json").unlink(missing_ok=True)

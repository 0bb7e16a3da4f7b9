"""A fine-tuning, as a run of pre-training that does some steps in its own way."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar

import torch

from lowdim.core.errors import LowdimError
from lowdim.core.masks import Masks
from lowdim.core.progress import Progress
from lowdim.models import ranks
from lowdim.models.disk import manifest
from lowdim.models.disk.checkpoint import Checkpoint
from lowdim.models.disk.convert import convert
from lowdim.models.disk.source import resolve
from lowdim.models.disk.writer import write_tensors
from lowdim.models.structure.zeros import masks_of
from lowdim.runs.directory import Directory
from lowdim.train.finetune import adapter, changes, pairs
from lowdim.train.finetune.goal import Answers, Preferred
from lowdim.train.finetune.plan import FinetuningPlan, Trained, trained
from lowdim.train.finetune.recipe import Finetuning
from lowdim.train.keep import KeepZeros
from lowdim.train.pretrain import layers, network
from lowdim.train.pretrain.engine import Engine
from lowdim.train.pretrain.goal import Goal
from lowdim.train.pretrain.plan import planned
from lowdim.train.pretrain.prepare import Prepared, prepare
from lowdim.train.pretrain.run import Run
from lowdim.train.ride import Rider

_REFERENCE, _PACKED = ".reference.safetensors", ".packed"


class Finetuner(Engine):
    """Trains on; keeps zeros; says what has changed on disk."""

    file: ClassVar[str] = "finetuning.json"
    stage: ClassVar[str] = "Fine-tune"

    def __init__(self) -> None:
        self._masks: Masks | None = None
        self._said: Trained | None = None

    def prepare(self, recipe: Finetuning, advance: Callable[[int], None] = lambda _: None) -> Prepared:
        """Find the model and the rows, and check that they fit.

        Raises:
            LowdimError: they do not, or training would take the model off the grid that it was rounded to.
        """
        if recipe.adapter is not None:
            adapter.check_peft()
        _check_source(recipe)
        return prepare(recipe, advance, None if recipe.preference is None else pairs.read)

    def begin(self, prepared: Prepared) -> Run:
        """Return the run at its first step."""
        recipe: Any = prepared.recipe
        model, copies = network.make(recipe, prepared.config, prepared.source, prepared.device)
        masks, goal = _masks(model), _goal(recipe, model)
        self._masks, zeros = masks, sum(int((~mask).sum()) for _, mask in (masks or Masks()).items())
        inner: Any = model
        if recipe.adapter is not None:
            inner = adapter.wrap(model, recipe.adapter, masks, recipe.seed)
        optimizer = recipe.optimizer.build(inner)
        spread = network.spread(inner, recipe) if ranks.active() else inner
        riders: list[Rider] = []
        if masks is not None and recipe.adapter is None and not recipe.optimizer.chooses:
            with warnings.catch_warnings():  # whoever trains a pruned model knows how sparse it is
                warnings.filterwarnings("ignore", r"\d+ of \d+ weights stay dense")
                riders.append(KeepZeros(inner, optimizer))
        riders += network.riders(prepared, spread, optimizer)  # which may freeze blocks, whose zeros are to stay too
        self._said = trained(inner, recipe.optimizer, optimizer, prepared.weights[0], zeros)
        kept = {p: copies[p] for p in copies if p.requires_grad} if isinstance(copies, dict) else copies
        wide = False if recipe.optimizer.chooses or not kept else kept
        return Run(prepared, spread, optimizer, riders, wide, goal, self.stage, looks_first=True)

    def plan(
        self, prepared: Prepared, run: Run, seconds: float | None = None, memory: int | None = None
    ) -> FinetuningPlan:
        """Return the plan; ``seconds`` are those of a step."""
        base = planned(prepared, seconds, memory, layers.notes(prepared, run))
        known = {each.name: getattr(base, each.name) for each in fields(base)}
        assert self._said is not None
        return FinetuningPlan(**known, trained=self._said, unit="pairs" if run.goal.unit == "pairs" else "rows")

    def ready(self, prepared: Prepared, run: Run, directory: Directory | None, out: Path, progress: Progress) -> None:
        """Let the model, as it is before training, say what preferences are measured from; once for all attempts."""
        goal = run.goal
        if not isinstance(goal, Preferred):
            return
        place = out.with_name(f"{out.name}.partial") / _REFERENCE
        sides = {"train": prepared.text, "validation": prepared.held}
        if directory is not None and not place.exists():
            batch = prepared.recipe.evaluation.batch or prepared.recipe.batch
            said = {n: goal.refer(run.model, side, batch, prepared.device, progress) for n, side in sides.items()}
            write_tensors(directory, place.name, said)
        ranks.barrier()
        from safetensors.torch import load_file

        found = load_file(place)
        for name, side in sides.items():
            side.reference = found[name]

    def facts(self, prepared: Prepared, run: Run) -> dict[str, Any]:
        """Return what is said of the run beside what is said of every one."""
        before, after = (
            {k: v for k, v in row.items() if k not in ("step", run.goal.unit)} for row in (run.curve[0], run.curve[-1])
        )
        assert self._said is not None
        return {
            "before": before,
            "validation": {**after, "rows": len(prepared.held)},
            "trained": {each.name: getattr(self._said, each.name) for each in fields(self._said)},
            "chosen": _chosen(run) if prepared.recipe.optimizer.chooses else None,
            **layers.facts(prepared, run),
        }

    def measured(self, prepared: Prepared, run: Run, peak: float) -> dict[str, Any]:
        """Return what is not reproducible of the training alone."""
        state = [v for each in run.loop.optimizer.state.values() for v in each.values() if isinstance(v, torch.Tensor)]
        rate, seconds = run.rate, run.seconds
        return {
            f"{run.goal.unit}_per_s": None if rate != rate else round(rate, 2),
            "seconds_per_step": None if seconds != seconds else round(seconds, 4),
            "state_bytes": sum(tensor.nbytes for tensor in state),
        }

    def model(self, prepared: Prepared, run: Run) -> Any:
        """Return the stock model that was trained; adapters are merged."""
        recipe: Any = prepared.recipe
        inner = ranks.unwrapped(run.model)
        return inner if recipe.adapter is None or ranks.rank() else adapter.merged(inner)

    def write(self, directory: Directory, prepared: Prepared, model: Any, facts: dict[str, Any]) -> dict[str, Any]:
        """Write what was trained as the source is stored, compare both on disk, and return the facts with that.

        Raises:
            CheckpointError: more has changed than was trained, or a zero is none any more.
        """
        assert prepared.source is not None
        place, source = self.stock(directory, prepared, model), Checkpoint(prepared.source.path)
        changes.in_own_types(place, source)
        said = {"recipe": facts["recipe"], "student": prepared.source.spec, "data": facts["data"]["hash"]}
        record = changes.record_of(source, place, said)
        if record is not None:
            (place / manifest.FILE).write_text(manifest.to_text(record), encoding="utf-8")
        packed = directory.partial / _PACKED
        shutil.rmtree(packed, ignore_errors=True)
        if source.storage == "packed":
            place = convert(place, packed, "packed", overwrite=True)
        written = Checkpoint(place)
        found = changes.compared(source, written, changes.pruned_in(source, self._masks or ()))
        changes.check(found, facts.pop("chosen"), written)
        for path in sorted(place.iterdir()):
            if path.is_file():
                directory.copy(path)
        for each in (directory.partial / ".stock", packed):
            shutil.rmtree(each, ignore_errors=True)
        return {**facts, "storage": source.storage, "changes": found}


def _check_source(recipe: Finetuning) -> None:
    if recipe.sampling is not None and ranks.size() > 1:
        raise LowdimError(
            "sampling leaves weights without gradients, and copies that allow for that count a head twice which the "
            "loss uses outside of the forward pass, as that on answers does. Fine-tune in one process, or leave "
            "sampling out."
        )
    source = resolve(recipe.model, trust_remote_code=recipe.trust_remote_code)
    if Checkpoint(source.path).ranks:
        raise LowdimError(
            f"{recipe.model} has layers of two factors, which fine-tuning would multiply out. Make it dense first "
            "(lowdim convert --storage dense), or train the factors by themselves (lowdim.nn.lowrank.train_factors_)."
        )
    record = manifest.read(source.path) if manifest.exists(source.path) else None
    if record is None:
        return
    if (grid := manifest.grid_of(record)) != "none":
        raise LowdimError(
            f"{recipe.model} holds weights that were rounded to {grid}; training moves them off that grid. Fine-tune "
            "the model from before it was rounded, and round the result (lowdim recover --quantize, or lowdim prune)."
        )
    if record.slorb is not None:
        raise LowdimError(
            f"{recipe.model} has SLoRB beside its layers, which fine-tuning does not train. Take a model recovered "
            "without masks.slorb."
        )


def _masks(model: Any) -> Masks | None:
    """Return the kept weights of a pruned model; None of a dense one."""
    try:
        return masks_of(model)
    except LowdimError:
        return None


def _goal(recipe: Finetuning, model: Any) -> Goal:
    return Answers(model) if recipe.preference is None else Preferred(recipe.preference, model)


def _chosen(run: Run) -> dict[str, int]:
    """Return how many entries of each weight were ever chosen, at most."""
    inner = ranks.unwrapped(run.model)
    names = {p: name for name, p in inner.named_parameters()}
    return {names[p]: int(state["touched"]) for p, state in run.loop.optimizer.state.items()}

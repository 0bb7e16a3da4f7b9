"""The front door: `recover` and `plan`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from lowdim.core.errors import LowdimError
from lowdim.core.progress import Progress, Silent
from lowdim.data.batch import split
from lowdim.data.calibration import CalibrationData, positions
from lowdim.data.windows import Windows
from lowdim.models import ranks
from lowdim.models.disk import manifest
from lowdim.models.disk.manifest import SLoRBPart
from lowdim.models.disk.writer import Writer
from lowdim.models.save import save_model
from lowdim.models.walk.opened import accepted
from lowdim.models.walk.stream import Stream, Walk, watched
from lowdim.nn.slorb import detach
from lowdim.pipeline.recover.blocks import BlockStage, Text, split_text
from lowdim.pipeline.recover.distill import DistillStage, Held
from lowdim.pipeline.recover.pair import Pair, open_pair
from lowdim.pipeline.recover.plan import RecoveryPlan, StagePlan, counted, memory, plan_blocks, plan_distill, states
from lowdim.pipeline.recover.recipe import Recovery
from lowdim.pipeline.recover.record import build_record
from lowdim.pipeline.recover.shared import States, own_part
from lowdim.prune.api import read_calibration
from lowdim.prune.keeper import BlockRecord, Keeper
from lowdim.prune.measure import Measured, compare, measure, measured_on, ready, recorded, still_holds
from lowdim.prune.sidecar import write_sidecar
from lowdim.prune.speed import MeasureSpeed
from lowdim.runs.clock import Clock
from lowdim.runs.directory import partial_of, tidy
from lowdim.runs.fingerprint import refuse_differences, versions


@dataclass(frozen=True)
class RecoveryResult:
    """What a recovery made.

    Attributes:
        manifest: the contents of ``lowdim.json``.
        out: the output directory.
    """

    manifest: dict[str, Any]
    out: Path

    @property
    def sparsity(self) -> float:
        """Share of zeros over the layers."""
        share: float = self.manifest["sparsity"]["prunable"]
        return share


def recover(
    model: PreTrainedModel | str | Path,
    recipe: Recovery | None = None,
    *,
    out: str | Path,
    teacher: str | Path | None = None,
    minutes: float | None = None,
    calibration: CalibrationData | str | Path | Iterable[Any] | None = None,
    tokenizer: Any = None,
    revision: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    announce: Callable[[str], None] | None = None,
    speed: MeasureSpeed | None = None,
    stages: Mapping[str, StagePlan] | None = None,
) -> RecoveryResult:
    """Train a pruned model to be like its dense teacher again; its zeros stay where they are.

    Args:
        model: a directory that ``lowdim prune`` wrote, dense or packed; any other checkpoint, whose zeros are its mask;
            or a Transformers model in memory, which is left as it is.
        recipe: what to do; by default both stages, one pass each.
        out: output directory. It appears when it is complete; until then there is ``OUT.partial``.
        teacher: the dense model; the one that ``lowdim.json`` names if not given.
        minutes: of training on this machine; overrides the recipe's.
        calibration: overrides the recipe's text: whatever `lowdim.data.calibration.calibration` takes.
        tokenizer: for a model in memory; a model on disk brings its own.
        revision: branch, tag or commit of a hub id.
        resume: go on from ``OUT.partial``; the result is the same to the byte as that of an uninterrupted run.
        overwrite: replace an existing ``out``, once the new one is complete.
        progress: told of stages and their advance.
        announce: given the plan as text before the work begins.
        speed: measures both models where the recipe sets ``evaluation.tokens``; Hugging Face ``generate`` if not given.
        stages: what `plan` found for the same recipe and text, instead of timing it again.

    Raises:
        LowdimError: anything that the caller can put right: recipe, models, data, output directory, numbers.
    """
    recipe = recipe or Recovery()
    given = {"teacher": None if teacher is None else str(teacher), "minutes": minutes}
    recipe = Recovery(**recipe.to_dict() | {key: value for key, value in given.items() if value is not None})
    model, target = accepted(model), Path(out)
    run = _Run(recipe, progress or Silent(), calibration, tokenizer, announce, speed, stages)
    with ranks.launched():
        if recipe.distill.shard and not ranks.active():
            raise LowdimError(
                "distill.shard cuts the model over several processes, and this is one. Start them with torchrun, or "
                "leave it out."
            )
        if not isinstance(model, PreTrainedModel):
            return run.to_disk(model, target, revision, resume, overwrite)
        if ranks.active():
            raise LowdimError("several ranks recover a model from disk together: save it, and give its directory.")
        with tempfile.TemporaryDirectory(dir=target.absolute().parent, prefix=f".{target.name}.") as place:
            save_model(model, tokenizer, Path(place))
            return run.to_disk(place, target, None, resume, overwrite)


def plan(
    model: str | Path,
    recipe: Recovery,
    *,
    calibration: CalibrationData | str | Path | Iterable[Any] | None = None,
    revision: str | None = None,
) -> RecoveryPlan:
    """Return what a recovery would do, timed on this machine; nothing is written.

    Raises:
        LowdimError: a model cannot be used, or the recipe does not fit it.
    """
    return _Run(recipe, Silent(), calibration, None, None).plan(str(model), revision)


class _Run:
    """One call of `recover`: what its stages hand to each other."""

    def __init__(
        self,
        recipe: Recovery,
        progress: Progress,
        source: Any,
        tokenizer: Any,
        announce: Callable[[str], None] | None,
        speed: MeasureSpeed | None = None,
        stages: Mapping[str, StagePlan] | None = None,
    ) -> None:
        self.recipe, self.progress, self.source, self.tokenizer = recipe, progress, source, tokenizer
        self.announce = announce or (lambda _: None)
        self.speed, self.stages = speed, stages
        self.clock = Clock()
        self._windows: Windows | None = None

    def plan(self, spec: str, revision: str | None) -> RecoveryPlan:
        """Time both stages."""
        pair, data = self._open(spec, revision)
        text = self._text(data)
        return self._planned(pair, text)

    def _plan_stage(self, name: str, pair: Pair, text: Text) -> StagePlan:
        return plan_blocks(pair, text) if name == "blocks" else plan_distill(DistillStage(pair, text, None))

    def _planned(self, pair: Pair, text: Text) -> RecoveryPlan:
        weights, zeros = counted(pair)
        stages = dict(self.stages or {}) or {name: self._plan_stage(name, pair, text) for name in self.recipe.stages}
        needed = memory(pair, text, max(stage.batches for stage in stages.values()))
        return RecoveryPlan(stages, weights, zeros, {name: needed[name] for name in stages})

    def to_disk(self, spec: str, out: Path, revision: str | None, resume: bool, overwrite: bool) -> RecoveryResult:
        """Recover from disk to disk."""
        if resume and not overwrite and manifest.exists(out):
            return self._finished(spec, out, revision)
        writer = Writer(out, overwrite=overwrite, resume=resume) if ranks.rank() == 0 else None
        with nullcontext() if writer is None else writer:
            with self.clock.stage("Open"):
                pair, data = self._open(spec, revision)
                text = self._text(data)
                partial = partial_of(out)
                keeper, store = Keeper(pair.student, writer, partial), States(writer, partial)
                checkpoint = pair.student.checkpoint
                assert checkpoint is not None
                if writer is not None:
                    kept = states(pair) if "distill" in self.recipe.stages else 0
                    writer.directory.require_space(checkpoint.size_bytes + kept)
                keeper.start(self._fingerprint(pair, data))
                keeper.write_outer()
            plan = self._settled(pair, text, keeper)
            before = self._measured("dense", pair, keeper, pair.teacher.stream.forward)
            pruned = self._measured("pruned", pair, keeper, pair.student.stream.forward)
            records, held, stage = self._stages(pair, text, plan, keeper, store)
            after = self._measured("sparse", pair, keeper, self._written(pair, keeper))
            alone = None
            if stage is not None and stage.beside:
                alone, after = after, self._measured("sparse", pair, keeper, stage.forward)
            evaluation = compare(before, after, pair.student.stream.compute)
            record = build_record(pair, data, plan, keeper, records, held, evaluation, pruned, alone)
            if stage is not None and stage.beside:
                beside = detach(stage.student)
                keeper.write_outer(beside)
                record.slorb = SLoRBPart.of(beside)
            if writer is not None:
                keeper.finish(record)
        if writer is not None:
            write_sidecar(out, pair.student, self.clock, self.progress, self.speed, pair.teacher)
        ranks.barrier()
        return RecoveryResult(record.to_dict(), out)

    def _open(self, spec: str, revision: str | None) -> tuple[Pair, CalibrationData]:
        """Open the models and read the text."""
        pair = open_pair(spec, self.recipe, revision=revision)
        self.tokenizer = self.tokenizer or pair.student.tokenizer() or pair.teacher.tokenizer()
        self._windows = ready(pair.student.recipe, self.tokenizer, pair.student.config)
        pair.check_weights()
        return pair, read_calibration(pair.student, self.source, self.tokenizer)

    def _finished(self, spec: str, out: Path, revision: str | None) -> RecoveryResult:
        """Return the result of an earlier run of the same recipe, models and data, which is complete already."""
        pair, data = self._open(spec, revision)
        asked, found = self._fingerprint(pair, data), manifest.read(out)
        evaluation = measured_on(pair.student.recipe, self._windows)
        own = found.recovery or {}
        files = own.get("files", {})
        made = {
            "recovery": own.get("recipe"),
            "model": files.get("student"),
            "teacher": files.get("teacher"),
            "data": own.get("data", {}).get("hash"),
        }
        asked = {key: asked[key] for key in made} | {"evaluation": evaluation}
        made["evaluation"] = recorded(found.evaluation, evaluation)
        refuse_differences(f"the finished run in {out}", made, asked)
        if ranks.rank() == 0:
            tidy(out)
        return RecoveryResult(found.to_dict(), out)

    def _text(self, data: CalibrationData) -> Text:
        text = split_text(list(split([data.whole], self.recipe.batch_tokens)), self.recipe.calibration.held)
        return own_part(text, self.recipe.distill.shard)

    def _settled(self, pair: Pair, text: Text, keeper: Keeper) -> RecoveryPlan:
        """Return the plan of this run: an earlier attempt's, or one that is timed now; it is told before the work."""
        with self.clock.stage("Plan"):
            found = keeper.recall("plan")
            if found is not None:
                stages = {name: StagePlan(**stage) for name, stage in found["stages"].items()}
                plan = RecoveryPlan(stages, found["weights"], found["zeros"], found["memory"])
            else:
                try:
                    plan = self._planned(pair, text)
                except LowdimError:
                    if keeper.writer is not None:
                        keeper.writer.directory.reset()  # nothing in it is worth going on from
                    raise
                keeper.remember("plan", plan.to_dict())
        self.announce(plan.render())
        return plan

    def _stages(
        self, pair: Pair, text: Text, plan: RecoveryPlan, keeper: Keeper, store: States
    ) -> tuple[dict[int, BlockRecord], Held | None, DistillStage | None]:
        records: dict[int, BlockRecord] = {}
        if "blocks" in plan.stages:
            own = plan.stages["blocks"]
            records = keeper.blocks()
            if len(records) < len(pair.student.stream):
                with self.clock.stage("Recover block by block"):
                    part = Text(text.train[: own.batches], text.held)
                    records = BlockStage(pair, part, own.steps).run(keeper, self.progress)
        held = stage = None
        if "distill" in plan.stages:
            with self.clock.stage("Recover end to end"):
                stage = DistillStage(pair, text, keeper.reader() if "blocks" in plan.stages else None)
                held = stage.run(plan.stages["distill"].steps, keeper, store, self.progress)
                records = stage.write(keeper)
        return records, held, stage

    def _written(self, pair: Pair, keeper: Keeper) -> Walk:
        """Return the forward of what has been written."""
        stream = pair.student.stream
        return Stream(stream.model, keeper.reader(), compute=stream.compute, device=stream.device).forward

    def _measured(self, name: str, pair: Pair, keeper: Keeper, forward: Walk) -> Measured:
        """Measure a model, or recall what an earlier attempt measured."""
        recipe, session = pair.student.recipe, pair.student
        text = self._windows
        if text is None and not recipe.evaluation.tasks:
            return Measured()
        if name != "sparse" and (found := keeper.recall(name)):
            earlier = Measured.from_dict(found)
            if still_holds(earlier, recipe, text):
                return earlier
        measured = Measured()
        if ranks.rank() == 0:
            with self.clock.stage(f"Evaluate {name}"):
                seen = watched(forward, len(session.stream), f"Evaluate the {name} model", self.progress)
                measured = measure(seen, recipe, self.tokenizer, text, positions(session.config))
        if name != "sparse":
            keeper.remember(name, measured.to_dict())
        return measured

    def _fingerprint(self, pair: Pair, data: CalibrationData) -> dict[str, Any]:
        """Return all that decides the output's bytes."""
        if pair.student.checkpoint is None or pair.teacher.checkpoint is None:
            raise LowdimError("both models are read from disk")
        return {
            "recovery": self.recipe.to_dict(),
            "model": pair.student.checkpoint.fingerprint(),
            "teacher": pair.teacher.checkpoint.fingerprint(),
            "data": data.hash,
            "compute": str(pair.student.stream.compute),
            "ranks": ranks.size(),
            "versions": versions(),
        }

"""The front door: `prune` and `plan`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from lowdim.core.errors import RecipeError
from lowdim.core.masks import Masks
from lowdim.core.progress import Progress, Silent
from lowdim.core.score.base import GRADIENT
from lowdim.data.batch import Batch, split
from lowdim.data.calibration import CalibrationData, calibration, check_context, positions
from lowdim.data.windows import Windows
from lowdim.models import ranks
from lowdim.models.disk import manifest
from lowdim.models.disk.convert import convert
from lowdim.models.disk.manifest import FallbackPart, Manifest
from lowdim.models.disk.packed import Packed, becomes_smaller
from lowdim.models.disk.writer import Writer
from lowdim.models.save import save_around, save_model
from lowdim.models.walk.gradients import loss_gradients
from lowdim.models.walk.opened import accepted
from lowdim.models.walk.stream import Stream, Walk, watched
from lowdim.prune.keeper import BlockRecord, Keeper
from lowdim.prune.manifest import build_manifest
from lowdim.prune.measure import Measured, compare, measure, measured_on, ready, recorded, still_holds
from lowdim.prune.plan import Plan, make_plan
from lowdim.prune.recipe import Recipe
from lowdim.prune.run import prune_blocks, settle_allocation
from lowdim.prune.session import Session, needs_data, open_session
from lowdim.prune.sidecar import write_sidecar
from lowdim.prune.speed import MeasureSpeed
from lowdim.runs.clock import Clock
from lowdim.runs.directory import check_idle, partial_of, tidy
from lowdim.runs.fingerprint import refuse_differences, versions

TOKENS_PER_BATCH = 2048
NOT_SMALLER = "storage=packed was asked for, and no weight has zeros enough to become smaller: all are stored dense"


@dataclass(frozen=True)
class PruneResult:
    """What a run made.

    Attributes:
        manifest: the contents of ``lowdim.json``.
        out: the output directory; ``None`` for a model pruned in memory only.
        model: the model that was pruned in memory; ``None`` for a run from disk to disk.
        masks: kept weights of a model pruned in memory, named and shaped as its parameters.
    """

    manifest: dict[str, Any]
    out: Path | None = None
    model: PreTrainedModel | None = None
    masks: Masks = field(default_factory=Masks)

    @property
    def sparsity(self) -> float:
        """Share of zeros over the pruned layers."""
        share: float = self.manifest["sparsity"]["prunable"]
        return share


def plan(model: PreTrainedModel | str | Path, recipe: Recipe, *, revision: str | None = None) -> Plan:
    """Return what a recipe would do to a model: layers, budgets, memory and time; no weight is read.

    Raises:
        LowdimError: the model cannot be used, the recipe does not fit it, or what is to be measured is missing.
    """
    session = open_session(model, recipe, revision=revision)
    if session.checkpoint is not None:
        ready(recipe, session.tokenizer(), session.config)
    return make_plan(session)


def prune(
    model: PreTrainedModel | str | Path,
    recipe: Recipe,
    *,
    calibration: CalibrationData | str | Path | Iterable[Any] | None = None,
    tokenizer: Any = None,
    out: str | Path | None = None,
    revision: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    speed: MeasureSpeed | None = None,
) -> PruneResult:
    """Prune a causal language model.

    A model given by path is read block by block and written to ``out``; a model in memory is pruned in place, and
    written too if ``out`` is given.

    Args:
        model: a directory, hub id, GGUF file or ``builtin:`` name; or a Transformers model in memory.
        recipe: what to do.
        calibration: overrides the recipe's source: whatever `lowdim.data.calibration.calibration` takes.
        tokenizer: for a model in memory; a model on disk brings its own.
        out: output directory. It appears when it is complete; until then there is ``OUT.partial``.
        revision: branch, tag or commit of a hub id.
        resume: go on from ``OUT.partial``; the result is the same to the byte as that of an uninterrupted run. Where
            ``out`` is complete already, and from the same recipe, model and data, nothing is done.
        overwrite: replace an existing ``out``, once the new one is complete.
        progress: told of stages and their advance.
        speed: measures both models where the recipe sets ``evaluation.tokens``; Hugging Face ``generate`` if not given.

    Returns:
        The manifest, and where the model is.

    Raises:
        LowdimError: anything that the caller can put right: recipe, model, data, output directory, numbers.

    Example:
        >>> import torch
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        ...                      num_attention_heads=4)
        >>> tokens = torch.arange(64).view(4, 16)
        >>> recipe = Recipe(sparsity=0.5, score="wanda", calibration={"samples": 4}, evaluation={"text": None})
        >>> result = prune(LlamaForCausalLM(config), recipe, calibration=tokens)
        >>> result.sparsity
        0.5
    """
    progress, model = progress or Silent(), accepted(model)
    run = _Run(recipe, progress, calibration, tokenizer, speed)
    with ranks.launched():
        if isinstance(model, PreTrainedModel):
            if resume:
                raise RecipeError(
                    "resume is for a model on disk, whose finished blocks are durable; a model in memory begins anew. "
                    "Leave resume out, or save the model and give its directory."
                )
            check_idle(out, resume, overwrite)
            return run.in_memory(model, None if out is None else Path(out), overwrite)
        if out is None:
            raise ValueError(
                "prune() of a model on disk needs out=DIRECTORY; only a model in memory is pruned in place"
            )
        return run.to_disk(model, Path(out), revision, resume, overwrite)


class _Run:
    """One call of `prune`: what its stages hand to each other."""

    def __init__(
        self, recipe: Recipe, progress: Progress, source: Any, tokenizer: Any, speed: MeasureSpeed | None
    ) -> None:
        self.recipe = recipe
        self.progress = progress
        self.source = source
        self.tokenizer = tokenizer
        self.speed = speed
        self.clock = Clock()
        self._rounded: dict[str, Packed] | None = None
        self._text: Windows | None = None

    def in_memory(self, model: PreTrainedModel, out: Path | None, overwrite: bool) -> PruneResult:
        writer = Writer(out, overwrite=overwrite) if out is not None and ranks.rank() == 0 else None
        try:
            session = open_session(model, self.recipe)
            self._text = ready(self.recipe, self.tokenizer, session.config)
            if writer is not None:
                writer.directory.require_space(sum(parameter.nbytes for parameter in model.parameters()))
                save_around(model, self.tokenizer, writer.directory.partial)
            session.check_weights()
            data = self._data(session)
            self._rounded = None if out is None else {}
            evaluation, records = self._stages(session, data, None)
            record = build_manifest(session, data, records, evaluation, self._allocation)
            masks = Masks.from_dict({n: model.get_parameter(n).detach() != 0 for n in _parameters(session)})
            if writer is not None and out is not None:
                self._save(writer, session, record)
                write_sidecar(out, session, self.clock, self.progress, self.speed)
            return PruneResult(record.to_dict(), out, model, masks)
        except BaseException:
            if writer is not None:
                writer.directory.reset()  # nothing in it could be gone on from
            raise
        finally:
            if writer is not None:
                writer.directory.close()

    def to_disk(self, spec: str, out: Path, revision: str | None, resume: bool, overwrite: bool) -> PruneResult:
        if resume and not overwrite and manifest.exists(out):
            return self._finished(spec, out, revision)
        writer = Writer(out, overwrite=overwrite, resume=resume) if ranks.rank() == 0 else None
        try:
            session, data = self._open(spec, revision)
            keeper = Keeper(session, writer, partial_of(out))
            assert session.checkpoint is not None
            if writer is not None:
                writer.directory.require_space(session.checkpoint.size_bytes)
            keeper.start(self._fingerprint(session, data))
            keeper.write_outer()
            evaluation, records = self._stages(session, data, keeper)
            record = build_manifest(session, data, records, evaluation, self._allocation)
            if writer is not None:
                keeper.finish(record)
                write_sidecar(out, session, self.clock, self.progress, self.speed)
            ranks.barrier()
            return PruneResult(record.to_dict(), out)
        finally:
            if writer is not None:
                writer.directory.close()

    def _open(self, spec: str, revision: str | None) -> tuple[Session, CalibrationData | None]:
        """Open a model and read the data."""
        with self.clock.stage("Open"):
            session = open_session(spec, self.recipe, revision=revision)
            self.tokenizer = self.tokenizer or session.tokenizer()
            self._text = ready(self.recipe, self.tokenizer, session.config)
            session.check_weights()
            return session, self._data(session)

    def _finished(self, spec: str, out: Path, revision: str | None) -> PruneResult:
        """Return the result of an earlier run of the same recipe, model and data, which is complete already."""
        asked, found = self._fingerprint(*self._open(spec, revision)), manifest.read(out)
        evaluation = measured_on(self.recipe, self._text)
        made = {
            "recipe": found.recipe,
            "model": found.model.files,
            "data": found.data.get("calibration", {}).get("hash"),
            "versions": {name: found.versions.get(name, found.lowdim) for name in asked["versions"]},
        }
        asked = {key: asked[key] for key in made} | {"evaluation": evaluation}
        made["evaluation"] = recorded(found.evaluation, evaluation)
        refuse_differences(f"the finished run in {out}", made, asked)
        if ranks.rank() == 0:
            tidy(out)
        return PruneResult(found.to_dict(), out)

    def _stages(
        self, session: Session, data: CalibrationData | None, keeper: Keeper | None
    ) -> tuple[dict[str, Any], dict[int, BlockRecord]]:
        """Measure the dense model, take gradients where the score needs them, allocate, prune, measure again."""
        batches = ranks.share(batches_of(data)) if data else []
        text, limit = self._text, positions(session.config)

        def measured(name: str, forward: Walk) -> Measured:
            if (text is None and not self.recipe.evaluation.tasks) or ranks.rank() != 0:
                return Measured()
            with self.clock.stage(f"Evaluate {name}"):
                seen = watched(forward, len(session.stream), f"Evaluate the {name} model", self.progress)
                return measure(seen, self.recipe, self.tokenizer, text, limit)

        found = keeper.recall("dense") if keeper else None
        dense = Measured.from_dict(found) if found else Measured()
        if not found or not still_holds(dense, self.recipe, text):
            dense = measured("dense", session.stream.forward)
            if keeper:
                keeper.remember("dense", dense.to_dict())
        if GRADIENT in self.recipe.needs:
            with self.clock.stage("Gradients"):
                gradients = loss_gradients(session.stream, session.layers, batches, self.progress)
            session = replace(session, gradients=gradients)
        with self.clock.stage("Allocate"):
            self._allocation = settle_allocation(session, batches, keeper, self.progress)
        with self.clock.stage("Prune"):
            records = prune_blocks(session, self._allocation, batches, keeper, self.progress, self._rounded)
        sparse = measured("sparse", self._written(session, keeper))
        return compare(dense, sparse, session.stream.compute), records

    def _written(self, session: Session, keeper: Keeper | None) -> Walk:
        """Return the forward of the pruned model: the one in memory, or the one on disk."""
        if keeper is None:
            return session.stream.forward
        stream = session.stream
        stored = None if self.recipe.dtype == "auto" else session.stored
        return Stream(
            stream.model, keeper.reader(), stored=stored, compute=stream.compute, device=stream.device
        ).forward

    def _data(self, session: Session) -> CalibrationData | None:
        """Return the calibration data, ``None`` if the recipe looks at none."""
        return read_calibration(session, self.source, self.tokenizer) if needs_data(self.recipe) else None

    def _fingerprint(self, session: Session, data: CalibrationData | None) -> dict[str, Any]:
        """Return all that decides the output's bytes."""
        assert session.checkpoint is not None
        return {
            "recipe": self.recipe.to_dict(),
            "model": session.checkpoint.fingerprint(),
            "data": data.hash if data else None,
            "compute": str(session.stream.compute),
            "ranks": ranks.size(),
            "versions": versions(),
        }

    def _save(self, writer: Writer, session: Session, record: Manifest) -> None:
        """Write a model pruned in memory as a stock directory, and pack it if that was asked for."""
        model = session.stream.model
        pruned = map(model.get_parameter, _parameters(session))
        packs = self.recipe.storage == "packed" and (bool(self._rounded) or any(map(becomes_smaller, pruned)))
        if self.recipe.storage == "packed" and not packs:
            record.fallbacks.append(FallbackPart(layer="", what=NOT_SMALLER))
        save_model(model, self.tokenizer, writer.directory.partial)
        writer.write_index()
        record.hashes.files = writer.hashes()
        writer.directory.write_text(manifest.FILE, manifest.to_text(record))
        writer.finish()
        if packs:
            convert(writer.directory.out, writer.directory.out, "packed", overwrite=True, rounded=self._rounded)


def _parameters(session: Session) -> list[str]:
    """Return the names of the pruned layers' parameters, each once."""
    chosen = {info.name for info in session.layers}
    layers = (layer for index in range(len(session.stream)) for layer in session.stream.describe(index)[0])
    return list(dict.fromkeys(layer.parameter for layer in layers if layer.name in chosen))


def read_calibration(session: Session, source: Any, tokenizer: Any) -> CalibrationData:
    """Return the calibration data of a session's recipe; a ``source`` that is given overrides the recipe's.

    Raises:
        DataError: there is too little of it, or it does not suit the model.
    """
    recipe, config = session.recipe, session.config
    settings = recipe.calibration
    embedding: Any = session.stream.model.get_input_embeddings()
    context = settings.context or min(2048, positions(config) or 2048)
    if isinstance(source, CalibrationData):
        data = source
    else:
        data = calibration(
            settings.source if source is None else source,
            tokenizer,
            samples=settings.samples,
            context=context,
            seed=recipe.seed if settings.seed is None else settings.seed,
            format=settings.format,
            padding=settings.padding,
            rationale=settings.rationale,
            in_context=settings.in_context,
            bos=settings.bos,
            vocab_size=embedding.weight.shape[0],
        )
    check_context(data.context, config)
    return data


def batches_of(data: CalibrationData) -> list[Batch]:
    """Return the samples in batches of the size in which blocks run fastest on a CPU, however they were batched."""
    return list(split([data.whole], TOKENS_PER_BATCH))

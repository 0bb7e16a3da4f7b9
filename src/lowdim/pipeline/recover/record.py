"""What a recovery says of itself in ``lowdim.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from lowdim.core.allocation import AllocationResult
from lowdim.data.calibration import CalibrationData
from lowdim.models.disk.manifest import AllocationPart, Manifest, ModelPart
from lowdim.pipeline.recover.distill import Held
from lowdim.pipeline.recover.pair import Pair
from lowdim.pipeline.recover.plan import RecoveryPlan
from lowdim.prune.keeper import BlockRecord, Keeper
from lowdim.prune.manifest import build_manifest
from lowdim.prune.measure import Measured


def build_record(
    pair: Pair,
    data: CalibrationData,
    plan: RecoveryPlan,
    keeper: Keeper,
    records: Mapping[int, BlockRecord],
    held: Held | None,
    evaluation: Mapping[str, Any],
    pruned: Measured,
    alone: Measured | None,
) -> Manifest:
    """Collect the manifest: what pruning wrote of itself, the layers as they are now, and the recovery.

    The model named is the dense one, as after pruning, so that a recovery can be recovered further. ``alone`` is the
    model without what stands beside its layers, if anything does.
    """
    made = build_manifest(pair.student, data, records, evaluation, AllocationResult({}, {}))
    recipe = pair.recipe.to_dict()
    assert pair.teacher.checkpoint is not None
    made.recovery = {
        "recipe": recipe,
        "teacher": pair.teacher_name,
        "student": pair.student.name,
        "files": {"student": made.model.files, "teacher": pair.teacher.checkpoint.fingerprint()},
        "data": made.data.pop("calibration"),
        "stages": {name: {"steps": stage.steps, "batches": stage.batches} for name, stage in plan.stages.items()},
        "blocks": {index: _untimed(fit) for index, fit in (keeper.recall("fits") or {}).items()},
        "distill": None if held is None else _untimed(asdict(held)),
        "note": _notes(keeper),
        "pruned": _said(pruned),
        "without_slorb": None if alone is None else _said(alone),
        "masks": keeper.recall("masks"),
    }
    before = pair.record
    if before is not None:
        made.recipe = before.recipe
        made.seed, made.allocation, made.probes = before.seed, before.allocation, before.probes
        made.data = before.data
        made.model = before.model
        if made.sparsity and before.sparsity:
            made.sparsity.target = before.sparsity.target
        made.fallbacks = [*before.fallbacks, *(f for f in made.fallbacks if f not in before.fallbacks)]
    else:
        teacher = pair.teacher
        made.allocation = AllocationPart(name="as found")
        if made.sparsity:
            made.sparsity.target = made.sparsity.prunable
        made.model = ModelPart(
            source=pair.teacher_name,
            revision=teacher.source.revision if teacher.source else None,
            architecture=made.model.architecture,
            dtype=made.model.dtype,
            files=pair.teacher.checkpoint.fingerprint(),
        )
    return made


def _said(found: Measured) -> dict[str, float]:
    return {} if found.perplexity is None else {"perplexity": found.perplexity.value}


def _untimed(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in ("seconds", "note")}


def _notes(keeper: Keeper) -> str | None:
    """Return what went otherwise than planned: of blocks, then of the second stage."""
    fits, last = keeper.recall("fits") or {}, keeper.recall("distill_note")
    notes = [f"block {index}: {fit['note']}" for index, fit in fits.items() if fit.get("note")]
    return "; ".join(notes + ([last] if last else [])) or None

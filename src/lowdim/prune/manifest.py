"""What a run says of itself in ``lowdim.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from lowdim.core.allocation import AllocationResult
from lowdim.core.files import read_json
from lowdim.data.calibration import CalibrationData
from lowdim.models.disk import manifest
from lowdim.models.disk.manifest import Manifest
from lowdim.prune.keeper import BlockRecord
from lowdim.prune.session import Session


def build_manifest(
    session: Session,
    data: CalibrationData | None,
    records: Mapping[int, BlockRecord],
    evaluation: Mapping[str, Any],
    allocation: AllocationResult,
) -> Manifest:
    """Collect a run's manifest; the hashes of files are added when they are written."""
    layers = {name: asdict(record) for i in sorted(records) for name, record in records[i].layers.items()}
    weights = sum(layer["numel"] for layer in layers.values())
    zeros = weights - sum(layer["nonzeros"] for layer in layers.values())
    whole = session.stream.numel()
    source, checkpoint, recipe = session.source, session.checkpoint, session.recipe
    return manifest.parse(
        {
            "schema": manifest.SCHEMA,
            "lowdim": version("lowdim"),
            "recipe": recipe.to_dict(),
            "seed": recipe.seed,
            "storage": recipe.storage if checkpoint else "dense",
            "model": {
                "source": session.name,
                "revision": source.revision if source else None,
                "architecture": (session.config.architectures or [type(session.stream.model).__name__])[0],
                "dtype": str(session.stored).removeprefix("torch."),
                "files": checkpoint.fingerprint() if checkpoint else {},
            },
            "data": {"calibration": data.record()} if data else {},
            "versions": manifest.versions(),
            "layers": layers,
            "skipped": [{"name": name, "reason": reason} for name, reason in session.skipped],
            "sparsity": {
                "target": recipe.target,
                "prunable": zeros / weights if weights else 0.0,
                "model": zeros / whole if whole else 0.0,
            },
            "allocation": {
                "name": recipe.to_dict()["allocation"]["name"],
                "values": {name: float(value) for name, value in allocation.values.items()},
            },
            "fallbacks": [*_of_source(session), *(entry for i in sorted(records) for entry in records[i].fallbacks)],
            "hashes": {
                "masks": {n: h for i in sorted(records) for n, h in records[i].masks.items()},
                "files": {},
            },
            "evaluation": dict(evaluation),
            "probes": {}
            if recipe.idle
            else recipe.allocation.describe(allocation.values, session.layers, len(session.stream)),
        }
    )


def _of_source(session: Session) -> list[dict[str, str]]:
    """Return what was not taken from the source as it says of itself."""
    source, checkpoint = session.source, session.checkpoint
    if source is None or checkpoint is None:
        return []
    unknown = "says this of its model, which the converted config does not hold"
    notes = [{"layer": key, "what": f"the GGUF file {unknown}", "detail": ""} for key in source.notes]
    config = read_json(source.path / "config.json")
    said, most = config.get("dtype") or config.get("torch_dtype"), str(checkpoint.dtype)
    if session.recipe.dtype == "auto" and isinstance(said, str) and f"torch.{said.removeprefix('torch.')}" != most:
        what = f"config.json says {said}, most weights are {most.removeprefix('torch.')}: each tensor keeps its own"
        notes.append({"layer": "config.json", "what": what, "detail": ""})
    return notes

"""``OUT.run.json``: what depends on the machine and the hour, kept out of the output directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lowdim.core.machine import machine
from lowdim.core.progress import Progress
from lowdim.models.disk import manifest
from lowdim.models.disk.checkpoint import Checkpoint
from lowdim.models.disk.convert import tensor_name
from lowdim.prune.measure import make_windows
from lowdim.prune.session import Session
from lowdim.prune.speed import MeasureSpeed, measure_speed
from lowdim.runs import sidecar
from lowdim.runs.clock import Clock


def write_sidecar(
    out: Path, session: Session, clock: Clock, progress: Progress, measure: MeasureSpeed | None = None
) -> Path:
    """Write stages, machine, sizes and speed beside an output directory; return the file's path.

    Args:
        out: the output directory.
        session: the run.
        clock: its stages.
        progress: told of the measurement.
        measure: how speed is measured; `measure_speed` if not given.
    """
    speed: dict[str, Any] = {}
    if session.source is not None and session.recipe.evaluation.tokens:
        with clock.stage("Measure speed"):
            compute = session.stream.compute or session.stored
            text = make_windows(session.recipe, session.tokenizer())
            tokens = session.recipe.evaluation.tokens
            speed = (measure or measure_speed)(session.source.path, out, compute, tokens, text, progress)
    content = {
        "stages": clock.stages,
        "machine": machine(),
        "size": sizes(out, session),
        "speed": speed,
        "command": sidecar.command(),
    }
    return sidecar.write_sidecar(out, content)


def sizes(out: Path, session: Session) -> dict[str, Any]:
    """Return bytes on disk before and after, and the bits that a pruned weight takes, its mask included."""
    after = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    found: dict[str, Any] = {"sparse_bytes": after}
    if session.checkpoint is not None:
        found["dense_bytes"] = session.checkpoint.size_bytes
        found["pruned_layers_bits_per_weight"] = bits_per_weight(Checkpoint(out))
    return found


def bits_per_weight(written: Checkpoint) -> float:
    """Return stored bits per weight over the layers that ``lowdim.json`` lists."""
    names = [tensor_name(written, layer) for layer in manifest.read(written.path).layers]
    weights = sum(written.info(name).numel for name in names)
    return round(8 * sum(written.stored_bytes(name) for name in names) / weights, 3) if weights else 0.0

"""``OUT.run.json``: what depends on the machine and the hour, kept out of the output directory."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from lowdim.core.machine import machine
from lowdim.core.progress import Progress
from lowdim.models.disk import manifest
from lowdim.models.disk.checkpoint import Checkpoint
from lowdim.models.disk.convert import tensor_name
from lowdim.models.walk.opened import Opened
from lowdim.prune.measure import make_windows
from lowdim.prune.session import Session
from lowdim.prune.speed import MeasureSpeed, measure_speed
from lowdim.runs import sidecar
from lowdim.runs.clock import Clock


def write_sidecar(
    out: Path,
    session: Session,
    clock: Clock,
    progress: Progress,
    measure: MeasureSpeed | None = None,
    dense: Opened | None = None,
) -> Path:
    """Write stages, machine, sizes and speed beside an output directory; return the file's path.

    Args:
        out: the output directory.
        session: the run.
        clock: its stages.
        progress: told of the measurement.
        measure: how speed is measured; `measure_speed` if not given.
        dense: the model that the output is compared with; the session's own if not given.
    """
    dense, speed = dense or session, dict[str, Any]()
    if dense.source is not None and session.recipe.evaluation.tokens:
        with clock.stage("Measure speed"):
            compute = dense.stream.compute or dense.stored
            text = make_windows(session.recipe, session.tokenizer() or dense.tokenizer(), session.config)
            tokens = session.recipe.evaluation.tokens
            plain = partial(measure_speed, trust_remote_code=session.recipe.trust_remote_code)
            speed = (measure or plain)(dense.source.path, out, compute, tokens, text, progress)
    content = {
        "stages": clock.stages,
        "machine": machine(),
        "size": sizes(out, dense),
        "speed": speed,
        "command": sidecar.command(),
    }
    return sidecar.write_sidecar(out, content)


def sizes(out: Path, dense: Opened) -> dict[str, Any]:
    """Return bytes on disk before and after, and the bits that a pruned weight takes, its mask included."""
    found: dict[str, Any] = {"sparse_bytes": weight_bytes(out)}
    if dense.checkpoint is not None:
        found["dense_bytes"] = dense.checkpoint.size_bytes
        found["pruned_layers_bits_per_weight"] = bits_per_weight(Checkpoint(out))
    return found


def weight_bytes(directory: Path) -> int:
    """Return the bytes of the files with weights in a directory."""
    return sum(file.stat().st_size for file in directory.glob("*.safetensors"))


def bits_per_weight(written: Checkpoint) -> float:
    """Return stored bits per weight over the layers that ``lowdim.json`` lists."""
    names = [tensor_name(written, layer) for layer in manifest.read(written.path).layers]
    weights = sum(written.info(name).numel for name in names)
    return round(8 * sum(written.stored_bytes(name) for name in names) / weights, 3) if weights else 0.0

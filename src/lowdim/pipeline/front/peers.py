"""Rows of forms that are not ours: the file that a model came from, and those of llama.cpp."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from lowdim.core.progress import Progress
from lowdim.data import assets
from lowdim.data.batch import Batch
from lowdim.data.windows import Windows
from lowdim.models.disk.source import is_gguf
from lowdim.pipeline.front import llamacpp
from lowdim.pipeline.front.forms import Form
from lowdim.pipeline.front.measure import Row, Run, measure_run
from lowdim.pipeline.front.settings import Settings

ROOM = 2048
"""Tokens that llama.cpp has room for where the model takes so many, and text and tasks need no more."""


def source_file(spec: str) -> Path | None:
    """Return the GGUF file that a model comes from; ``None`` if it comes from none."""
    if spec.startswith("builtin:"):
        return assets.path(spec.removeprefix("builtin:"))
    path = Path(spec).expanduser()
    return path if path.is_file() and is_gguf(path) else None


def room_for(text: Windows, longest: int, most: int | None) -> int:
    """Return the tokens that llama.cpp has room for: a window's, the longest question's, or what the model takes."""
    return max(text.context, longest, min(most or ROOM, ROOM))


def seconds_per_token(settings: Settings, room: int, ids: Tensor) -> float | None:
    """Return a token's seconds in llama.cpp, for ids ``[1, tokens]`` and the source's file; None if it cannot run."""
    source = source_file(settings.model)
    if source is None or llamacpp.missing():
        return None
    with closing(llamacpp.LlamaCpp(source, room)) as model:
        begun = time.perf_counter()
        list(model([Batch(ids)]))
        return (time.perf_counter() - begun) / ids.numel()


def foreign(
    form: Form, place: Path, settings: Settings, room: int, tokenizer: Any, text: Windows, progress: Progress
) -> Row:
    """Return the row of a form that llama.cpp runs: measured if it can, else with the reason.

    Args:
        form: the source's file, or one of llama.cpp's kinds.
        place: where files are written.
        settings: of the front.
        room: tokens that a sequence may hold, see `room_for`.
        tokenizer: the model's.
        text: windows for perplexity.
        progress: told of stages.

    Raises:
        LowdimError: llama.cpp cannot round, load or run the file.
    """
    source, why = source_file(settings.model), llamacpp.missing()
    if source is None:
        return Row(form.name, form.sort, note="not measured: the model does not come from a GGUF file")
    if why:
        size = source.stat().st_size if form.sort == "file" else None
        return Row(form.name, form.sort, file_bytes=size, note=f"not measured: {why}")
    file = source
    if form.sort != "file":
        kind = form.name.removeprefix("llama.cpp-")
        file = place / f"{kind}.gguf"
        if not file.exists():
            with progress.stage(f"Round to {kind}", 1, "models") as stage:
                llamacpp.requantize(source, file, kind)
                stage.advance()
    with closing(llamacpp.LlamaCpp(file, room)) as model:
        run = Run(model, model, model.vocab, room, llamacpp.bytes_read(file), file.stat().st_size)
        row, _ = measure_run(form, run, settings, tokenizer, text, progress)
    made = f"llama.cpp, {source.name}" + ("" if form.sort == "file" else ", rounded anew")
    return replace(row, note="; ".join(filter(None, (made, row.note))))

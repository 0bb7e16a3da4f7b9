"""Rows of forms that are not ours: the file that a model came from, and those of llama.cpp."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from lowdim.data import assets
from lowdim.pipeline.front.forms import Form
from lowdim.pipeline.front.measure import Row


def source_file(spec: str) -> Path | None:
    """Return the GGUF file that a model comes from; ``None`` if it comes from none."""
    if spec.startswith("builtin:"):
        return assets.path(spec.removeprefix("builtin:"))
    path = Path(spec).expanduser()
    return path if path.suffix == ".gguf" and path.is_file() else None


def foreign(form: Form, spec: str) -> Row:
    """Return the row of a form that is not made here: what is known of it, and why the rest is not."""
    if form.sort == "file":
        return _of_file(form, source_file(spec))
    if find_spec("llama_cpp") is None:
        reason = "not measured: llama-cpp-python is not installed"
    else:
        reason = "not measured: this command does not drive llama.cpp; benchmarks/runtime.py times it"
    return Row(form.name, form.sort, note=reason)


def _of_file(form: Form, file: Path | None) -> Row:
    if file is None:
        return Row(form.name, form.sort, note="the model does not come from a GGUF file")
    note = (
        f"the model was read from {file.name} and lies on that file's grid: there its perplexity is dense-bf16's but "
        "for the rounding to bf16; no engine here runs the file as it is"
    )
    return Row(form.name, form.sort, file_bytes=file.stat().st_size, note=note)

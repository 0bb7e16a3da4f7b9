"""Build the page: read what a run left on disk, and write one HTML file beside it."""

from __future__ import annotations

import os
import platform
from importlib import import_module
from pathlib import Path

from lowdim.core.errors import CheckpointError, LowdimError
from lowdim.models.disk import manifest
from lowdim.report.files import beside, sidecar, whole
from lowdim.report.pruning.page import render

BENCH_SCHEMA = 1
PAGES = {
    "training.json": "training",
    "ranks.json": "ranking",
    "front.json": "front",
    "compose.json": "compose",
    "stress.json": "stress",
    "sweep.json": "sweep",
    "pretraining.json": "pretrain",
}
"""Rooms by the file that says what a directory holds; each has ``page.py``, whose ``page(out)`` returns the text."""


def build(out: Path, html: Path | None = None) -> Path:
    """Write the report of the run whose output is ``out``, and return the page's path.

    The page needs nothing but itself: no script, no network, no font file. It is replaced in one step, so a
    page that exists is complete. The same inputs give the same bytes.

    Args:
        out: the directory with ``lowdim.json``; or what ``lowdim pretrain``, ``sweep``, ``train-sparse``, ``rank``,
            ``front``, ``compose`` or ``stress`` wrote.
            ``OUT.run.json`` beside it, if there, has the timings, and ``OUT.bench.json`` what ``lowdim bench OUT
            --json OUT.bench.json`` measured.
        html: where to write; ``OUT.html`` by default.

    Raises:
        CheckpointError: ``out`` holds no ``lowdim.json``, a damaged one, or one of a later version of lowdim.
        LowdimError: the page cannot be written.
    """
    out = Path(os.path.abspath(out))
    found = next((name for name in (*PAGES, manifest.FILE) if (out / name).exists()), None)
    if found is None:
        raise CheckpointError(_absent(out))
    html = beside(out, ".html") if html is None else Path(html)
    if found in PAGES:
        page = import_module(f"lowdim.report.{PAGES[found]}.page").page
        with whole(found):
            text = page(out)
        write_page(html, text)
        return html
    facts = manifest.read(out).to_dict()
    run, problem = sidecar(beside(out, ".run.json"), "times, sizes and speeds are missing")
    bench, other = sidecar(beside(out, ".bench.json"), "what lowdim bench measured is missing")
    if bench and bench.get("schema") != BENCH_SCHEMA:
        bench, other = ({}, f"what lowdim bench measured is missing: {out.name}.bench.json is of another version")
    problems = [text for text in (problem, other) if text]
    write_page(html, render(facts, run, bench=bench, problems=problems, out=out.name))
    return html


def _absent(out: Path) -> str:
    """Say why there is no page of a directory."""
    partial = out if out.suffix == ".partial" else out.with_name(f"{out.name}.partial") if out.name else out
    if out.name and partial.is_dir():
        return f"out must be a finished run, and {partial} is an unfinished one. Repeat its command, and let it resume."
    return (
        f"out must be a finished run: {out} holds no {manifest.FILE}. Give what `lowdim prune`, `pretrain`, "
        "`sweep`, `train-sparse`, `rank`, `front`, `compose` or `stress` wrote."
    )


def write_page(path: Path, text: str) -> None:
    """Replace a page in one step.

    Raises:
        LowdimError: it cannot be written.
    """
    partial = path.absolute().with_name(f".{platform.node()}.{os.getpid()}.partial")  # jobs of an array write one page
    try:
        with partial.open("w", encoding="utf-8", errors="replace", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise LowdimError(
            f"cannot write the report {path}: {error.strerror or error}. Name another place with --html."
        ) from error
    finally:
        partial.unlink(missing_ok=True)

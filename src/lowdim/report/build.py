"""Build the page: read what a run left on disk, and write one HTML file beside it."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import Any

from lowdim.core.errors import CheckpointError, LowdimError
from lowdim.core.files import read_json
from lowdim.models.disk import manifest
from lowdim.report.pruning.page import render
from lowdim.report.training import page as training

BENCH_SCHEMA = 1
RANKS = "ranks.json"
PAGES = {"front.json": "front", "compose.json": "compose", "stress.json": "stress"}
"""Rooms whose page shows all that one file holds, by the file."""


def build(out: Path, html: Path | None = None) -> Path:
    """Write the report of the run whose output is ``out``, and return the page's path.

    The page needs nothing but itself: no script, no network, no font file. It is replaced in one step, so a
    page that exists is complete. The same inputs give the same bytes.

    Args:
        out: the directory with ``lowdim.json``; with ``training.json`` where a run of sparse training left it; or with
            what ``lowdim rank``, ``front``, ``compose`` or ``stress`` wrote.
            ``OUT.run.json`` beside it, if there, has the timings, and ``OUT.bench.json`` what ``lowdim bench OUT
            --json OUT.bench.json`` measured.
        html: where to write; ``OUT.html`` by default.

    Raises:
        CheckpointError: ``out`` holds no ``lowdim.json``, a damaged one, or one of a later version of lowdim.
        LowdimError: the page cannot be written.
    """
    out = Path(os.path.abspath(out))
    html = beside(out, ".html") if html is None else Path(html)
    if (out / training.FILE).exists():
        write_page(html, training.render(training.read(out), _sidecar(beside(out, ".run.json"), "")[0], out.name))
        return html
    if (out / RANKS).exists():
        from lowdim.report.ranking import page as ranking  # torch

        write_page(html, ranking.render(*ranking.read(out), _sidecar(beside(out, ".run.json"), "")[0], out.name))
        return html
    for name, room in PAGES.items():
        if (out / name).exists():
            held = read_json(out / name)
            if "sentence" not in held:
                raise CheckpointError(f"{out / name} is not what `lowdim {room}` writes, or it is of another version")
            write_page(html, import_module(f"lowdim.report.{room}.page").render(held))
            return html
    if not manifest.exists(out):
        raise CheckpointError(
            f"out must be a finished run: {out} holds no {manifest.FILE}. Give what `lowdim prune`, `train-sparse`, "
            "`rank`, `front`, `compose` or `stress` wrote."
        )
    facts = manifest.read(out).to_dict()
    run, problem = _sidecar(beside(out, ".run.json"), "times, sizes and speeds are missing")
    bench, other = _sidecar(beside(out, ".bench.json"), "what lowdim bench measured is missing")
    if bench and bench.get("schema") != BENCH_SCHEMA:
        bench, other = ({}, f"what lowdim bench measured is missing: {out.name}.bench.json is of another version")
    problems = [text for text in (problem, other) if text]
    write_page(html, render(facts, run, bench=bench, problems=problems, out=out.name))
    return html


def beside(out: Path, ending: str) -> Path:
    """Return the path of a file beside a run's directory.

    Example:
        >>> beside(Path("runs/smol-v1.2"), ".html").as_posix()
        'runs/smol-v1.2.html'
    """
    return out.with_name(out.name + ending)


def _sidecar(path: Path, missing: str) -> tuple[dict[str, Any], str]:
    """Return the sidecar, or nothing and the reason; that it is absent is no fault, a run may be moved."""
    if not path.exists():
        return {}, ""
    try:
        return read_json(path), ""
    except CheckpointError as error:
        return {}, f"{missing}: {error}"


def write_page(path: Path, text: str) -> None:
    """Replace a page in one step.

    Raises:
        LowdimError: it cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
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

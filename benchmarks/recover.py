"""What recovery brings on the embedded model, beside what one would otherwise pick: quality, bytes and minutes.

Trains on the even-numbered articles alone; reports the odd-numbered ones, the passages of BoolQ and three tasks. Every
row is a directory under --out that is made once, also for the rows that go on from it, so that a killed run goes on; a
row that was measured is not measured again. The minutes of each row are of training on this machine, and the plan is
printed first.

    python benchmarks/recover.py --dry-run
    python benchmarks/recover.py --rows blocks-50 both-50 --seeds 0 --json benchmarks/results/recover.json
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Container, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pages import fill
from quality import COMPUTED, OWL, SAID, passages
from transformers import AutoTokenizer

import lowdim
from lowdim.core.machine import machine
from lowdim.core.quantize import Grid
from lowdim.data.windows import Windows, windows
from lowdim.evaluate.quality.zeroshot import evaluate_tasks
from lowdim.models.disk.checkpoint import Checkpoint
from lowdim.models.disk.source import resolve
from lowdim.models.quantize import quantize
from lowdim.pipeline.recover.api import recover
from lowdim.pipeline.recover.recipe import Recovery
from lowdim.prune.api import prune
from lowdim.prune.recipe import Recipe

MODEL = "builtin:smollm2-135m"
TASKS = ("sciq", "arc_easy", "piqa")
MEASURING, PRUNING = 3.0, 1.5
"""Minutes that measuring a row takes, and making one that is pruned, roughly."""


@dataclass(frozen=True)
class Row:
    """A model: how it is pruned, or which row it goes on from, and how it is trained for how many minutes."""

    name: str
    pruned: dict[str, Any] | None = None
    after: str = ""
    recovered: dict[str, Any] | None = None
    minutes: float = 0.0
    rounded: str = ""
    seeds: int = 1


HALF, SIX, SEVEN = ({"sparsity": share, "method": "refit"} for share in (0.5, 0.6, 0.7))
TWO_FOUR = {"pattern": "2:4", "method": "refit"}
PATTERNS = {
    **{each: {"pattern": each, "method": "refit"} for each in ("8:16", "4:8")},
    **{each: {**HALF, "pattern": each} for each in ("4x1", "8x1", "8x4")},
}
"""Half of the weights zero in other shapes, recovered in the minutes of ``blocks-50``."""
SHORT = {"sequences": 4, "lr": 3e-4}
BLOCKS, DISTILL = {"stage": "blocks"}, {"stage": "distill", "distill": SHORT}

ROWS = (
    Row("dense"),
    *(Row(f"dense-{grid}", rounded=grid) for grid in ("int8", "int4", "int3")),
    Row("refit-50", HALF, seeds=3),
    Row("blocks-50", after="refit-50", recovered=BLOCKS, minutes=10, seeds=3),
    Row("both-50", after="blocks-50", recovered=DISTILL, minutes=40, seeds=3),
    Row("dense-tuned", recovered={"stage": "distill", "distill": {"kl": 0.0, "ce": 1.0, **SHORT}}, minutes=50),
    *(Row(f"refit-{each}", how) for each, how in PATTERNS.items()),
    *(Row(f"blocks-{each}", after=f"refit-{each}", recovered=BLOCKS, minutes=10) for each in PATTERNS),
    Row("refit-2:4", TWO_FOUR),
    Row("blocks-2:4", after="refit-2:4", recovered=BLOCKS, minutes=10),
    Row("ast-2:4", after="blocks-2:4", recovered={"masks": "ast", **DISTILL}, minutes=40),
    Row("fixed-2:4", after="blocks-2:4", recovered=DISTILL, minutes=40),
    *(
        Row(f"both-50-{grid}", after="refit-50", recovered={"distill": SHORT, "quantize": grid}, minutes=7)
        for grid in ("int8", "int4")
    ),
    *(Row(f"trained-{grid}", recovered={"distill": SHORT, "quantize": grid}, minutes=7) for grid in ("int4", "int3")),
    Row("refit-60", SIX | {"allocation": OWL}),
    Row("both-60", after="refit-60", recovered={"distill": SHORT}, minutes=20),
    Row("wanda-70", SEVEN | {"method": "wanda"}),
    Row("owl-70", SEVEN | {"method": "wanda", "allocation": OWL}),
    Row("sparsegpt-70", SEVEN | {"method": "sparsegpt"}),
    Row("refit-70", SEVEN | {"allocation": OWL}),
    Row("both-70", after="refit-70", recovered={"distill": SHORT}, minutes=14),
)
NAMED = {row.name: row for row in ROWS}


def chain(row: Row) -> list[Row]:
    """Return the rows that a row goes on from, and itself."""
    return [*(chain(NAMED[row.after]) if row.after else ()), row]


def hours(jobs: Iterable[tuple[Row, int]], done: Container[tuple[str, int]]) -> float:
    """Return about how many hours rows take, with what they go on from; each is made once for a seed."""
    jobs = list(jobs)
    made = {(own.name, seed) for row, seed in jobs for own in chain(row)}
    making = sum(
        NAMED[name].minutes + PRUNING * bool(NAMED[name].pruned) for name, seed in made if (name, seed) not in done
    )
    return (making + MEASURING * len(jobs)) / 60


class Bench:
    """Makes rows, one directory each, and measures them on texts that no row was trained on."""

    def __init__(self, home: Path, limit: int) -> None:
        self.home, self.limit = home, limit
        self.source = resolve(MODEL).path
        self.tokenizer = AutoTokenizer.from_pretrained(self.source)
        self.texts: dict[str, Windows] = {
            "wiki": windows("builtin", self.tokenizer, 512, limit=40),
            "boolq": windows(passages(), self.tokenizer, 512, limit=40),
        }

    def run(self, row: Row, seed: int) -> dict[str, Any]:
        """Make a row, or go on with it, and measure it."""
        begun = time.perf_counter()
        made = self._make(row, seed)
        seconds = time.perf_counter() - begun
        minutes = sum(each.minutes for each in chain(row))
        return {"row": row.name, "seed": seed, "minutes": minutes, "seconds": seconds, **self.measure(made)}

    def _make(self, row: Row, seed: int) -> Path:
        place = self.home / f"{row.name.replace(':', '-')}-{seed}"
        if row.rounded:
            return place if place.exists() else quantize(MODEL, place, Grid.of(row.rounded))
        if row.pruned is not None:
            calibration = {"samples": 32, "context": 512}
            recipe = Recipe(**row.pruned, seed=seed, calibration=calibration, evaluation={"text": None})
            prune(MODEL, recipe, out=place, resume=True)
            return place
        student: str | Path = self._make(NAMED[row.after], seed) if row.after else MODEL
        if row.recovered is None:
            return self.source
        recovery = Recovery(**row.recovered, minutes=row.minutes, seed=seed, evaluation={"text": None}, teacher=MODEL)
        recover(student, recovery, out=place, resume=True, announce=lambda plan: print(plan, flush=True))
        return place

    def measure(self, path: Path) -> dict[str, Any]:
        """Return perplexities, accuracies and bytes of a model on disk."""
        model = lowdim.load(path, dtype=COMPUTED if Checkpoint(path).storage == "dense" else None)
        found: dict[str, Any] = {
            name: lowdim.perplexity(model, text, tokens_per_batch=1024).value for name, text in self.texts.items()
        }
        tasks = evaluate_tasks(model, self.tokenizer, TASKS, limit=self.limit, tokens_per_batch=1024)
        return found | {
            "computed": str(model.dtype),
            "tasks": {name: task.value for name, task in tasks.items()},
            "bytes": sum(file.stat().st_size for file in path.glob("*.safetensors")),
        }


def table(results: list[dict[str, Any]]) -> str:
    """Return the rows as Markdown, under a line that says what they were measured on."""
    about = machine()
    lines = [
        f"{about['cpu']}, {about['cores']} cores, torch {torch.__version__}; {SAID}:",
        "",
        f"| row | seed | minutes | wiki | BoolQ passages | {' | '.join(TASKS)} | MB on disk |",
        f"|{'---|' * (6 + len(TASKS))}",
    ]
    for found in results:
        tasks = " | ".join(f"{found['tasks'][name]:.1%}" for name in TASKS)
        lines.append(
            f"| {found['row']} | {found['seed']} | {found['minutes']:g} | {found['wiki']:.2f} | {found['boolq']:.2f} "
            f"| {tasks} | {found['bytes'] / 1e6:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Print the plan, make and measure every row, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=[row.name for row in ROWS], help="all if not given")
    parser.add_argument("--seeds", type=int, nargs="+", help="of every row; each row's own number if not given")
    parser.add_argument("--limit", type=int, default=100, help="questions per task")
    parser.add_argument("--out", type=Path, default=Path("runs/recover"))
    parser.add_argument("--json", type=Path, default=Path("runs/recover/results.json"))
    parser.add_argument("--docs", type=Path, help="page that the table goes into")
    parser.add_argument("--dry-run", action="store_true")
    given = parser.parse_args()
    jobs = [
        (row, seed)
        for row in ROWS
        if given.rows is None or row.name in given.rows
        for seed in given.seeds or range(row.seeds)
    ]
    results: list[dict[str, Any]] = json.loads(given.json.read_text())["rows"] if given.json.exists() else []
    done = {(found["row"], found["seed"]) for found in results}
    jobs = [(row, seed) for row, seed in jobs if (row.name, seed) not in done]
    print(
        f"{len(jobs)} rows to measure, {len(done)} measured already; about {hours(jobs, done):.1f} hours; {SAID}",
        flush=True,
    )
    if given.dry_run:
        return
    given.json.parent.mkdir(parents=True, exist_ok=True)
    bench = Bench(given.out, given.limit)
    for row, seed in jobs:
        results.append(bench.run(row, seed))
        given.json.write_text(json.dumps({"machine": machine(), "rows": results}, indent=1) + "\n")
        print(table(results[-1:]).splitlines()[-1], flush=True)
        shutil.rmtree(given.out / f"{row.name.replace(':', '-')}-{seed}.partial", ignore_errors=True)
    print(table(results))
    if given.docs:
        fill(given.docs, "recover", table(results))


if __name__ == "__main__":
    main()

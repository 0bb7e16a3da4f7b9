"""What recovery brings on the embedded model, beside what one would otherwise pick: quality, bytes and minutes.

Trains on the even-numbered articles alone; reports the odd-numbered ones, the passages of BoolQ and three tasks. Every
row is a directory under --out that is made once, so that a killed run goes on; a row that was measured is not measured
again. The minutes of each row are of training on this machine, and the plan is printed first.

    python benchmarks/recover.py --dry-run
    python benchmarks/recover.py --rows blocks-50 both-50 --seeds 0 --json benchmarks/results/recover.json
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pages import fill
from quality import OWL, passages
from transformers import AutoTokenizer

import lowdim
from lowdim.core.machine import machine
from lowdim.core.quantize import Grid
from lowdim.data.windows import Windows, windows
from lowdim.evaluate.quality.zeroshot import evaluate_tasks
from lowdim.models.disk.source import resolve
from lowdim.models.quantize import quantize
from lowdim.pipeline.recover.api import recover
from lowdim.pipeline.recover.recipe import Recovery
from lowdim.prune.api import prune
from lowdim.prune.recipe import Recipe

MODEL = "builtin:smollm2-135m"
TASKS = ("sciq", "arc_easy", "piqa")
PREPARATION = 4
"""Minutes of pruning and measuring, roughly, for every row."""


@dataclass(frozen=True)
class Row:
    """A model: how it is pruned, recovered and rounded, and for how many minutes it is trained."""

    name: str
    pruned: dict[str, Any] | None = None
    recovered: dict[str, Any] | None = None
    minutes: float = 0.0
    rounded: str = ""
    seeds: int = 1


HALF, SIX, SEVEN = ({"sparsity": share, "method": "refit"} for share in (0.5, 0.6, 0.7))
TWO_FOUR = {"pattern": "2:4", "method": "refit"}
SHORT = {"sequences": 4, "lr": 3e-4}

ROWS = (
    Row("dense"),
    *(Row(f"dense-{grid}", rounded=grid) for grid in ("int8", "int4", "int3")),
    Row("refit-50", HALF),
    Row("blocks-50", HALF, {"stage": "blocks"}, 10, seeds=3),
    Row("both-50", HALF, {"distill": SHORT}, 50, seeds=3),
    Row("dense-tuned", None, {"stage": "distill", "distill": {"kl": 0.0, "ce": 1.0, **SHORT}}, 50),
    Row("both-50-int8", HALF, {"distill": SHORT, "quantize": "int8"}, 20),
    Row("both-50-int4", HALF, {"distill": SHORT, "quantize": "int4"}, 20),
    *(Row(f"trained-{grid}", None, {"distill": SHORT, "quantize": grid}, 20) for grid in ("int4", "int3")),
    Row("refit-60", SIX | {"allocation": OWL}),
    Row("both-60", SIX | {"allocation": OWL}, {"distill": SHORT}, 40),
    Row("wanda-70", SEVEN | {"method": "wanda"}),
    Row("owl-70", SEVEN | {"method": "wanda", "allocation": OWL}),
    Row("sparsegpt-70", SEVEN | {"method": "sparsegpt"}),
    Row("both-70", SEVEN | {"allocation": OWL}, {"distill": SHORT}, 30),
    Row("refit-2:4", TWO_FOUR),
    Row("ast-2:4", TWO_FOUR, {"masks": "ast", "distill": SHORT}, 50),
)


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
        place = self.home / f"{row.name.replace(':', '-')}-{seed}"
        made = self._make(row, seed, place)
        seconds = time.perf_counter() - begun
        return {"row": row.name, "seed": seed, "minutes": row.minutes, "seconds": seconds, **self.measure(made)}

    def _make(self, row: Row, seed: int, place: Path) -> Path:
        if row.rounded:
            return place if place.exists() else quantize(MODEL, place, Grid.of(row.rounded))
        student: str | Path = MODEL
        if row.pruned is not None:
            calibration = {"samples": 32, "context": 512}
            recipe = Recipe(**row.pruned, seed=seed, calibration=calibration, evaluation={"text": None})
            student = place.with_name(f"{place.name}.oneshot")
            prune(MODEL, recipe, out=student, resume=True)
        if row.recovered is None:
            return self.source if student == MODEL else Path(student)
        recovery = Recovery(**row.recovered, minutes=row.minutes, seed=seed, evaluation={"text": None}, teacher=MODEL)
        recover(student, recovery, out=place, resume=True, announce=lambda plan: print(plan, flush=True))
        return place

    def measure(self, path: Path) -> dict[str, Any]:
        """Return perplexities, accuracies and bytes of a model on disk."""
        model = lowdim.load(path, dtype=None if (path / "lowdim.json").exists() else torch.bfloat16)
        found: dict[str, Any] = {
            name: lowdim.perplexity(model, text, tokens_per_batch=1024).value for name, text in self.texts.items()
        }
        tasks = evaluate_tasks(model, self.tokenizer, TASKS, limit=self.limit, tokens_per_batch=1024)
        return found | {
            "tasks": {name: task.value for name, task in tasks.items()},
            "bytes": sum(file.stat().st_size for file in path.glob("*.safetensors")),
        }


def table(results: list[dict[str, Any]]) -> str:
    """Return the rows as Markdown, under a line that says what they were measured on."""
    about = machine()
    lines = [
        f"{about['cpu']}, {about['cores']} cores, torch {torch.__version__}:",
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
    parser.add_argument("--limit", type=int, default=150, help="questions per task")
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
    minutes = sum(row.minutes + PREPARATION for row, _ in jobs)
    print(f"{len(jobs)} rows to measure, {len(done)} measured already; about {minutes / 60:.1f} hours", flush=True)
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

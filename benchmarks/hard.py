"""What pruning costs the embedded model where it shows first: the hard tasks over a grid, one-shot and recovered.

Every method is a run of ``lowdim stress`` in a directory under --home, which goes on where it was killed; each prints
its plan and minutes before it begins. As many questions a task are asked as fit into --hours, 8 if not given; all rows
and all questions take some three days. --quick asks fewer questions of fewer models, and says how many.

    python benchmarks/hard.py --dry-run
    python benchmarks/hard.py --hours 3 --rows wanda
    python benchmarks/hard.py --quick --json benchmarks/results/hard.json
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lowdim.core.machine import machine
from lowdim.pipeline.stress.api import stress
from lowdim.pipeline.stress.settings import GRID, Settings

MODEL = "builtin:smollm2-135m"
TOKENS = 5.0e6
"""Of all questions, for one model."""
RATE = 700.0
"""Tokens a second of the embedded model on two cores, roughly: what the hours are reckoned with."""


@dataclass(frozen=True)
class Row:
    """A way of pruning, and for how many minutes each model is recovered."""

    name: str
    recipe: dict[str, Any]
    minutes: float | None = None

    def settings(self, limit: int | None, grid: tuple[float, ...]) -> Settings:
        """Return what is run."""
        calibration = {"samples": 32, "context": 512}
        recipe = {**self.recipe, "calibration": calibration}
        return Settings(MODEL, grid=grid, recipe=recipe, minutes=self.minutes, limit=limit, windows=20)


ROWS = (
    Row("magnitude", {"method": "magnitude"}),
    Row("wanda", {"method": "wanda"}),
    Row("sparsegpt", {"method": "sparsegpt"}),
    Row("refit-recovered", {"method": "refit"}, minutes=10),
)
DEFAULT = ("wanda", "refit-recovered")
LEAST = 24
"""Questions a task, fewer than which say nothing."""
QUICK = (0.0, 0.2, 0.5)


def hours(row: Row, limit: int | None, grid: tuple[float, ...]) -> float:
    """Return the hours that a row takes, roughly."""
    asked = TOKENS if limit is None else min(TOKENS, 5400.0 * limit)
    models = 1 + len(grid) * (1 if row.minutes is None else 2)
    return models * asked / RATE / 3600 + len(grid) * (1 / 30 + (row.minutes or 0) / 60)


def fitting(rows: list[Row], grid: tuple[float, ...], most: float) -> int:
    """Return how many questions a task can be asked in so many hours."""
    fixed, one = (sum(hours(row, limit, grid) for row in rows) for limit in (0, 1))
    return int((most - fixed) / (one - fixed))


def table(found: dict[str, dict[str, Any]]) -> str:
    """Return the results as Markdown: a line per model, a column per task, drops in points with their intervals."""
    about = machine()
    first = next(iter(found.values()))
    tasks = list(first["dense"]["tasks"])
    counts = ", ".join(f"{name} {task['questions']}" for name, task in first["dense"]["tasks"].items())
    dense = [f"{task['accuracy']:.1%}" for task in first["dense"]["tasks"].values()]
    lines = [
        f"{about['cpu']}, {about['cores']} cores, torch {torch.__version__}; questions: {counts}.",
        "",
        f"| method | zeros | perplexity | {' | '.join(tasks)} |",
        f"|{'---|' * (3 + len(tasks))}",
        f"| dense | | {first['dense']['perplexity']:.2f} | {' | '.join(dense)} |",
    ]
    for name, result in found.items():
        for row in result["rows"]:
            cells = [
                f"{100 * task['drop']:+.1f} ({100 * task['drop_interval'][0]:+.1f} to "
                f"{100 * task['drop_interval'][1]:+.1f}), {task['state']}"
                for task in row["tasks"].values()
            ]
            form = name if row["form"] == "pruned" else f"{name}, recovered"
            lines.append(f"| {form} | {row['sparsity']:.0%} | {row['perplexity']:.2f} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"- {name}: {result['sentence']}" for name, result in found.items())])


def main() -> None:
    """Print the plan, run every row, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=[row.name for row in ROWS], default=DEFAULT)
    parser.add_argument("--quick", action="store_true", help="wanda alone, at 0, 20 and 50%%, 24 questions a task")
    parser.add_argument(
        "--limit", type=int, help="questions per task, 0 for all; as many as fit into --hours if not given"
    )
    parser.add_argument("--hours", type=float, default=8.0, help="what it may take")
    parser.add_argument("--home", type=Path, default=Path("build/hard"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--dry-run", action="store_true")
    asked = parser.parse_args()
    rows = [row for row in ROWS if row.name in (["wanda"] if asked.quick and asked.rows == DEFAULT else asked.rows)]
    grid = QUICK if asked.quick else GRID
    limit = LEAST if asked.quick and asked.limit is None else asked.limit
    if limit is None and (limit := fitting(rows, grid, asked.hours)) < LEAST:
        parser.error(f"--hours {asked.hours:g} is enough for {max(limit, 0)} questions a task; {LEAST} is the least")
    limit = limit or None
    for row in rows:
        asks, each = limit or "all", hours(row, limit, grid)
        print(f"{row.name}: {len(grid)} sparsities, {asks} questions a task, about {each:.1f} h", flush=True)
    print(f"about {sum(hours(row, limit, grid) for row in rows):.1f} h in all", flush=True)
    if asked.dry_run:
        return
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        place = asked.home / f"{row.name}-{len(grid)}-{limit or 'all'}"
        place.parent.mkdir(parents=True, exist_ok=True)
        settings = row.settings(limit, grid)
        found[row.name] = stress(settings, place, resume=True, announce=lambda plan: print(plan, flush=True))
        if asked.json is not None:
            asked.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(table(found))


if __name__ == "__main__":
    main()

"""What training in little memory costs and brings, beside what each row must reach; with the plan and its hours first.

Times are medians of turns taken one after the other in one process, and ratios of the time of all cores, which other
work on the machine does not stretch as it stretches the clock. Peers run in environments of their own, made on first
use. A row that is in the JSON is not measured again.

    python benchmarks/lowmemory.py --dry-run
    python benchmarks/lowmemory.py --rows state patterns refresh --json benchmarks/results/25-17/lowmemory.json
    python benchmarks/lowmemory.py --rows loss. --seeds 0 --steps 200 --text ~/corpus/corpus.jsonl
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lowmemory_loss
import lowmemory_rank
import lowmemory_state
from waiting import sleep_while_waiting

from lowdim.core.machine import machine


@dataclass(frozen=True)
class Row:
    """One thing that is measured: its name, minutes on two idle cores, what measures it, and whether it has seeds."""

    name: str
    minutes: float
    run: Callable[[argparse.Namespace, int], dict[str, Any]]
    seeds: bool = False


def rows(steps: int) -> list[Row]:
    """Return all rows; those of losses take as long as their steps."""
    found = [Row(name, minutes, run) for name, minutes, run in lowmemory_state.ROWS]
    found += [Row(name, minutes, run) for name, minutes, run in lowmemory_rank.ROWS]
    found += [
        Row(f"loss.{name}", lowmemory_loss.minutes(steps), lowmemory_loss.run(name), True)
        for name in lowmemory_loss.METHODS
    ]
    return found + [
        Row(f"layers.{task}.{name}", 12, lowmemory_loss.layers(task, name), True)
        for task in lowmemory_loss.TASKS
        for name in lowmemory_loss.LAYERS
    ]


def table(results: list[dict[str, Any]]) -> str:
    """Return what is printed of each row: each ratio with what it must reach."""
    lines = ["| row | seed | measured | must | |", "|---|---|---|---|---|"]
    for found in results:
        for what, value, relation, bound in found["ratios"]:
            held = {"<=": lambda v, b: v <= b, ">=": lambda v, b: v >= b, "": lambda v, b: True}[relation](value, bound)
            must, word = (f"{relation} {bound:g}", "yes" if held else "**no**") if relation else ("", "")
            lines.append(f"| {found['row']}: {what} | {found['seed']} | {value:.4g} | {must} | {word} |")
        if found.get("left_out"):
            lines.append(f"| {found['row']} | {found['seed']} | left out: {found['left_out']} | | |")
    return "\n".join(lines)


def main() -> None:
    """Print the plan, measure every row that is left, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", default=[], help="beginnings of the rows' names; all if not given")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of rows that are trained")
    parser.add_argument("--steps", type=int, default=600, help="of the miniature")
    parser.add_argument("--batch", type=int, default=16, help="sequences of 128 tokens of a step of the miniature")
    parser.add_argument("--text", nargs="+", default=["builtin"], help="what the miniature is trained on")
    parser.add_argument("--tokens", type=int, default=50_000, help="that a run of layers. trains on")
    parser.add_argument("--windows", type=int, default=40, help="of 512 tokens, that perplexity is measured on")
    parser.add_argument("--rounds", type=int, default=3, help="turns that a median is of")
    parser.add_argument("--json", type=Path, default=Path("runs/lowmemory/results.json"))
    parser.add_argument("--dry-run", action="store_true")
    given = parser.parse_args()
    sleep_while_waiting()
    results: list[dict[str, Any]] = json.loads(given.json.read_text())["rows"] if given.json.exists() else []
    done = {(found["row"], found["seed"]) for found in results}
    chosen = [row for row in rows(given.steps) if not given.rows or any(row.name.startswith(w) for w in given.rows)]
    jobs = [(row, seed) for row in chosen for seed in (given.seeds if row.seeds else [0])]
    for row, seed in jobs:
        print(f"{row.name}, seed {seed}: about {row.minutes:g} min{', done' * ((row.name, seed) in done)}")
    left = [(row, seed) for row, seed in jobs if (row.name, seed) not in done]
    hours = sum(row.minutes for row, _ in left) / 60
    print(f"{len(left)} of {len(jobs)} rows are left: about {hours:.1f} h on two idle cores", flush=True)
    if given.dry_run:
        return
    given.json.parent.mkdir(parents=True, exist_ok=True)
    for row, seed in left:
        begun = time.perf_counter()
        found = {"row": row.name, "seed": seed, **row.run(given, seed)}
        results.append({**found, "minutes": round((time.perf_counter() - begun) / 60, 1)})
        given.json.write_text(json.dumps({"machine": machine(), "rows": results}, indent=1) + "\n")
        print(table(results[-1:]).split("\n", 2)[2], flush=True)
    print(table(results))


if __name__ == "__main__":
    main()

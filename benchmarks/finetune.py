"""What fine-tuning brings and costs: all rows of the files finetune_*.py beside this one, with their plan first.

A row is measured once for every seed and kept as a file of its own under --home, so that a killed run goes on, and the
same command later finds what is there. Every file has a table, which says of each claim whether it held in all seeds.

    python benchmarks/finetune.py --home ~/finetune --plan
    python benchmarks/finetune.py --home ~/finetune --rows memory. preferences.todo --seeds 0
    python benchmarks/finetune.py --home ~/finetune --table --json benchmarks/results/finetune.json
"""

from __future__ import annotations

import argparse
import importlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from waiting import sleep_while_waiting

from lowdim.core.machine import machine


@dataclass(frozen=True)
class Place:
    """Where and how a row is run.

    Attributes:
        home: a directory of the row and the seed, kept between attempts.
        shared: one that all rows of a file share.
        seed: of the run.
        quick: whether to shrink it to what shows that it works; its numbers mean nothing.
    """

    home: Path
    shared: Path
    seed: int
    quick: bool


@dataclass(frozen=True)
class Row:
    """One thing that is measured.

    Attributes:
        name: of the row within its file.
        minutes: that it takes on two cores, about.
        run: measures it.
        seeds: whether it is measured with every seed; if not, with the first alone.
    """

    name: str
    minutes: float
    run: Callable[[Place], dict[str, Any]]
    seeds: bool = True


Found = dict[str, list[dict[str, Any]]]
"""By row, what was found with each seed."""


def parts() -> Iterator[tuple[str, Any]]:
    """Yield the files of rows: each has ``rows()`` and ``table(found)``."""
    for path in sorted(Path(__file__).parent.glob("finetune_*.py")):
        module = importlib.import_module(path.stem)
        if hasattr(module, "rows"):
            yield path.stem.removeprefix("finetune_"), module


def main() -> None:
    """Print the plan; measure what is left of it; print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, required=True, help="where runs and results are kept")
    parser.add_argument("--rows", nargs="+", default=[], help="beginnings of FILE.ROW, all if not given")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--quick", action="store_true", help="a minute each, to see that all rows run")
    parser.add_argument("--plan", action="store_true", help="stop after the plan")
    parser.add_argument("--table", action="store_true", help="print the tables of what is there")
    parser.add_argument("--json", type=Path, help="write all that is there here")
    given = parser.parse_args()
    sleep_while_waiting()
    home: Path = given.home / ("quick" if given.quick else "full")
    jobs = [
        (f"{part}.{row.name}", row, seed)
        for part, module in parts()
        for row in module.rows()
        for seed in (given.seeds if row.seeds else given.seeds[:1])
    ]
    jobs = [job for job in jobs if not given.rows or any(job[0].startswith(word) for word in given.rows)]
    if not given.table:
        _plan(jobs, home, given.quick)
        if given.plan:
            return
        for name, row, seed in jobs:
            _measure(name, row, seed, home, given.quick)
    found = _found(home)
    for part, module in parts():
        if own := {name.partition(".")[2]: each for name, each in found.items() if name.startswith(f"{part}.")}:
            print(f"\n## {part}\n\n{module.table(own)}")
    if given.json is not None:
        given.json.write_text(json.dumps({"machine": machine(), "quick": given.quick, "rows": found}, indent=1) + "\n")


def _file(home: Path, name: str, seed: int) -> Path:
    return home / "results" / f"{name}-{seed}.json"


def _plan(jobs: list[tuple[str, Row, int]], home: Path, quick: bool) -> None:
    left = [job for job in jobs if not _file(home, job[0], job[2]).exists()]
    for name, row, seed in jobs:
        state = "" if (name, row, seed) in left else ", done"
        print(f"{name}, seed {seed}: about {1 if quick else row.minutes:g} min{state}")
    minutes = sum(1 if quick else row.minutes for _, row, _ in left)
    print(f"{len(left)} of {len(jobs)} runs are left: about {minutes / 60:.1f} h on two idle cores", flush=True)


def _measure(name: str, row: Row, seed: int, home: Path, quick: bool) -> None:
    file = _file(home, name, seed)
    if file.exists():
        return
    place = Place(home / "runs" / f"{name}-{seed}", home / "shared" / name.partition(".")[0], seed, quick)
    place.home.mkdir(parents=True, exist_ok=True)
    place.shared.mkdir(parents=True, exist_ok=True)
    begun = time.perf_counter()
    found = {"seed": seed, **row.run(place), "minutes": round((time.perf_counter() - begun) / 60, 2)}
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(found, indent=1))
    partial.rename(file)
    print(f"{name}: {json.dumps(found)}", flush=True)


def _found(home: Path) -> Found:
    found: Found = {}
    for path in sorted((home / "results").glob("*.json")):
        found.setdefault(path.stem.rpartition("-")[0], []).append(json.loads(path.read_text()))
    return found


def beaten(one: list[dict[str, Any]], other: list[dict[str, Any]], key: str, lower: bool = False) -> str:
    """Return whether the first is better than the second in every seed, as a sentence's end."""
    pairs = {each["seed"]: each[key] for each in other}
    apart = [each[key] - pairs[each["seed"]] for each in one if each["seed"] in pairs]
    apart = [-value for value in apart] if lower else apart
    if not apart:
        return "not tested"
    better = sum(value > 0 for value in apart)
    said = f"better in {better} of {len(apart)} seeds, {sum(apart) / len(apart):+.4f} in the mean"
    return said if len(apart) >= 3 else f"{said} (fewer than three seeds: says little)"


if __name__ == "__main__":
    main()

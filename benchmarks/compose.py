"""What survives on the embedded model when interventions are composed: pairs of stages in both orders.

Every pair is a composition in a directory under --home, which goes on where it was killed; each prints its plan and
minutes before it begins. Edits, and what is forgotten and kept, are the built-in facts.

    python benchmarks/compose.py --dry-run
    python benchmarks/compose.py --quick --json benchmarks/results/compose.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from lowdim.core.machine import machine
from lowdim.pipeline.compose.api import compose
from lowdim.pipeline.compose.recipe import Composition

MODEL = "builtin:smollm2-135m"
MINUTES = {"prune": 1.5, "round": 0.2, "edit": 1.5, "unlearn": 3.0, "recover": 20.0}
"""Of each stage on two cores, roughly."""
_CALIBRATION = {"calibration": {"samples": 32, "context": 512}}
PRUNE = {"prune": {"sparsity": 0.5, "method": "wanda", **_CALIBRATION}}
LIGHT = {"prune": {"sparsity": 0.25, "method": "wanda", **_CALIBRATION}}
PAIRS: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "prune-edit": ([PRUNE, "edit"], {}),
    "prune-edit-free": ([PRUNE, {"edit": {"masked": False}}], {}),
    "prune25-edit": ([LIGHT, "edit"], {}),
    "round-edit": (["round", "edit"], {}),
    "round4-edit": ([{"round": {"dtype": "int4"}}, "edit"], {}),
    "prune-unlearn": ([PRUNE, "unlearn"], {}),
    "edit-unlearn": (["edit", "unlearn"], {}),
    "prune-prune": ([{"prune": {"sparsity": share, "method": "magnitude"}} for share in (0.25, 0.5)], {}),
    "prune-recover-edit": ([PRUNE, {"recover": {"minutes": 20, "stage": "blocks"}}, "edit"], {"pair": [1, 3]}),
}
QUICK = ("prune-edit", "prune-edit-free", "round-edit", "prune-prune")


def recipe(name: str, windows: int) -> Composition:
    """Return a pair in both orders."""
    stages, more = PAIRS[name]
    return Composition(stages=stages, orders="both", evaluation={"text": "builtin", "windows": windows}, **more)


def minutes(name: str, windows: int) -> float:
    """Return the minutes that a pair takes, roughly."""
    made = recipe(name, windows)
    own = sum(MINUTES[stage.word()] for stage in made.stages)
    return 2 * own + (1 + 2 * len(made.stages)) * (0.3 + windows / 60)


def table(found: dict[str, dict[str, Any]]) -> str:
    """Return the results as Markdown: a line per pair and measure."""
    about = machine()
    lines = [
        f"{about['cpu']}, {about['cores']} cores, torch {torch.__version__}.",
        "",
        "| pair | measure | before | in this order | reversed | order-free error | order sensitivity |",
        "|---|---|---|---|---|---|---|",
    ]

    def written(value: float | None, unit: str = "") -> str:
        return "-" if value is None else f"{value:.3f}{f' {unit}' if unit else ''}"

    for result in found.values():
        for row in result["table"]:
            orders = " | ".join(written(value) for value in row["orders"].values())
            errors = f"{written(row['error'], row['unit'])} | {written(row['sensitivity'], row['unit'])}"
            name = result["orders"]["model"]
            lines.append(f"| {name} | {row['title']} | {written(row['first'])} | {orders} | {errors} |")
        for name, stages in result["stages"].items():
            lines += [
                f"| {result['orders'][name]} | broken by {stage['stage']} | {broken['sentence']} | | | | |"
                for stage in stages
                for broken in stage["broken"]
            ]
    return "\n".join(lines)


def main() -> None:
    """Print the plan, run every pair, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="+", choices=list(PAIRS), help="all if not given")
    parser.add_argument("--quick", action="store_true", help=f"{', '.join(QUICK)}, on four windows of text")
    parser.add_argument("--windows", type=int, default=40)
    parser.add_argument("--home", type=Path, default=Path("build/compose"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--dry-run", action="store_true")
    asked = parser.parse_args()
    names = asked.pairs or (list(QUICK) if asked.quick else list(PAIRS))
    windows = 4 if asked.quick else asked.windows
    for name in names:
        print(f"{name}: about {minutes(name, windows):.0f} min", flush=True)
    print(f"about {sum(minutes(name, windows) for name in names) / 60:.1f} h in all", flush=True)
    if asked.dry_run:
        return
    asked.home.mkdir(parents=True, exist_ok=True)
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        place = asked.home / f"{name}-{windows}"
        options: dict[str, Any] = {"resume": True, "announce": lambda said: print(said, flush=True)}
        found[name] = compose(MODEL, recipe(name, windows), out=place, **options)
        if asked.json is not None:
            asked.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(table(found))


if __name__ == "__main__":
    main()

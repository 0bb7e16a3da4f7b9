"""Drafts for speculative decoding: AdaSPEC beside DistillSpec and plain cross entropy, at equal steps from one start.

The rows of the embedded model cut it to a few blocks, on prose and on questions whose answers alone count (there the
target is tuned first, as in the paper). The small row is a target of four blocks that is trained here, and its first
and only block. The plan comes first, in steps and hours, from a step that is timed here. What is finished stays: the
same command goes on. ``--quick`` is the small row on one seed.

    python benchmarks/finetune_draft.py --dry-run
    python benchmarks/finetune_draft.py --rows small --seeds 0 1 2
    python benchmarks/finetune_draft.py --table --docs docs/distill-draft.md
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any, NamedTuple

from pages import fill
from waiting import sleep_while_waiting

from lowdim.core.machine import machine
from lowdim.train.draft.api import distill_draft, plan
from lowdim.train.draft.recipe import Drafting
from lowdim.train.pretrain.api import pretrain
from lowdim.train.pretrain.recipe import Pretraining

QUESTIONS = ("builtin:arc_easy", "builtin:arc_challenge", "builtin:openbookqa")
SEEDS = (0, 1, 2)
ROWS: dict[str, dict[str, Any]] = {
    "small": {
        "draft": "target:1",
        "steps": 240,
        "optimizer": {"name": "adamw", "lr": 1e-3},
        "acceptance": {"texts": ["held", "builtin"], "prompts": 16},
    },
    "prose": {
        "draft": "target:6",
        "steps": 500,
        "batch": 8,
        "acceptance": {"texts": ["held", "builtin", "sciq"]},
    },
    "questions": {
        "draft": "target:6",
        "steps": 500,
        "batch": 8,
        "tune": {"steps": 100},
        "data": {"kind": "sft", "source": list(QUESTIONS), "validation": 0.1},
        "acceptance": {"texts": ["held", "sciq", "piqa"]},
    },
}
TARGET: dict[str, Any] = {
    "model": {"name": "9m", "vocab_size": 2048},
    "data": {"vocabulary": 2048},
    "length": 128,
    "steps": 500,
    "optimizer": {"name": "adamw", "lr": 3e-3},
}
RIVALS = ("distillspec", "ce")


class Job(NamedTuple):
    """One run: all methods side by side."""

    row: str
    seed: int

    @property
    def name(self) -> str:
        """Of its directory."""
        return f"{self.row}-{self.seed}"


def recipe(job: Job, home: Path) -> Drafting:
    """Return the recipe of a run; the target of the small row is trained first, once."""
    given: dict[str, Any] = {"rivals": list(RIVALS), "seed": job.seed, **ROWS[job.row]}
    if job.row == "small":
        place = home / "target"
        pretrain(Pretraining(**TARGET), out=place, resume=True, announce=lambda text: print(text, flush=True))
        given["target"] = str(place)
    return Drafting(**given)


def shown(found: dict[str, Any]) -> list[str]:
    """Return the lines of a run: of each text and method the acceptance, and the tokens for each call."""
    lines, measured = [], found["measured"]
    for text in measured["start"]:
        for method, row in measured.items():
            told, done = row[text], row[text]["simulated"]
            lines.append(
                f"| {found['row']} | {found['seed']} | {text} | {method} | {told['acceptance']:.2%} | "
                f"{told['agreement']:.1%} | {done['acceptance']:.1%} | {done['efficiency']:.2f} |"
            )
    return lines


def verdict(results: list[dict[str, Any]], rival: str) -> list[str]:
    """Return on how many runs and texts AdaSPEC is above a rival, and by how much on average."""
    gains = [
        found["measured"]["adaspec"][text]["acceptance"] - found["measured"][rival][text]["acceptance"]
        for found in results
        for text in found["measured"]["start"]
    ]
    above = sum(gain > 0 for gain in gains)
    mean = 100 * statistics.mean(gains)
    return [f"AdaSPEC over {rival}: above on {above} of {len(gains)} texts and seeds, {mean:+.2f} points on average."]


def table(results: list[dict[str, Any]]) -> str:
    """Return all runs as Markdown, and what they say."""
    heads = ("run", "seed", "text", "draft", "acceptance", "same token", "simulated", "tokens a call")
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    lines += [line for found in results for line in shown(found)]
    return "\n".join([*lines, "", *(line for rival in RIVALS for line in verdict(results, rival))])


def main() -> None:
    """Print the plan, run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--quick", action="store_true", help="the small row on one seed")
    parser.add_argument("--home", type=Path, default=Path("runs/drafts"))
    parser.add_argument("--json", type=Path, help="where results go; HOME/results.json if not given")
    parser.add_argument("--docs", type=Path, help="page that the table goes into")
    parser.add_argument("--table", action="store_true", help="print what was measured, and run nothing")
    parser.add_argument("--dry-run", action="store_true")
    given = parser.parse_args()
    file = given.json or given.home / "results.json"
    results: list[dict[str, Any]] = json.loads(file.read_text())["runs"] if file.exists() else []
    rows, seeds = (["small"], [0]) if given.quick else (given.rows, given.seeds)
    done = {(found["row"], found["seed"]) for found in results}
    jobs = [] if given.table else [Job(row, seed) for row in rows for seed in seeds if (row, seed) not in done]
    hours = 0.0
    for row in dict.fromkeys(job.row for job in jobs):
        first = next(job for job in jobs if job.row == row)
        found = plan(recipe(first, given.home))
        each = sum(steps * found.seconds[name] for name, steps in found.steps.items()) / 3600
        hours += each * sum(job.row == row for job in jobs)
        print(f"{row}:\n{found.render()}", flush=True)
    print(f"{len(jobs)} runs, {len(done)} measured already; about {hours:.2f} hours without measuring", flush=True)
    if given.dry_run:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    for job in jobs:
        made = distill_draft(recipe(job, given.home), out=given.home / job.name, resume=True)
        told = {"row": job.row, "seed": job.seed, "measured": made.measured, "trained": made.facts["trained"]}
        results.append(told)
        content = {"machine": machine(), "runs": results}
        file.write_text(json.dumps(content, indent=1) + "\n")
        print("\n".join(shown(told)), flush=True)
    if results:
        print(table(results))
        if given.docs:
            fill(given.docs, "drafts", table(results))


if __name__ == "__main__":
    sleep_while_waiting()
    main()

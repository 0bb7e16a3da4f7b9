"""Rows of `finetune.py`: preferences with a fifth of ties, by what learns from ties and what does not."""

from __future__ import annotations

import json
import statistics
from typing import Any

from finetune import Found, Place, Row, beaten

import lowdim
from lowdim.data.corpus import preferences

MODEL = "builtin:smollm2-135m"
OBJECTIVES: dict[str, dict[str, Any]] = {
    "todo": {"name": "todo", "beta": 0.1, "alpha": 0.5},
    "dpo": {"name": "dpo", "beta": 0.1, "ties": "drop"},
    "dpo-ties-preferred": {"name": "dpo", "beta": 0.1, "ties": "prefer"},
    "ipo": {"name": "ipo", "beta": 0.1, "ties": "drop"},
}
SETS = ("made-up", "arc_easy")


def rows() -> list[Row]:
    """Return a row for each objective and set."""
    return [
        Row(f"{kind}.{name}", 14, lambda place, kind=kind, name=name: run(place, kind, name))  # type: ignore[misc]
        for kind in SETS
        for name in OBJECTIVES
    ]


def pairs(kind: str, seed: int, count: int) -> list[preferences.Pair]:
    """Return pairs, a fifth of them ties; each seed has its own."""
    if kind == "made-up":
        return preferences.synthetic(count, ties=0.2, seed=seed)
    from lowdim.data import questions

    asked = questions.builtin(questions.CALIBRATION_SETS["arc_easy"])
    return preferences.from_questions(asked, ties=0.2, seed=seed)[:count]


def run(place: Place, kind: str, name: str) -> dict[str, Any]:
    """Train on the same pairs in the same order; judge by the same others."""
    file = place.home / "pairs.jsonl"
    made = preferences.records(pairs(kind, place.seed, 60 if place.quick else 1000))
    file.write_text("".join(json.dumps(row) + "\n" for row in made))
    recipe = lowdim.Finetuning(
        model=MODEL,
        optimizer={"name": "lift", "rank": 32, "budget": 16, "lr": 1e-4},
        preference=OBJECTIVES[name],
        data={"source": str(file), "validation": 0.2, "template": "question"},
        steps=3 if place.quick else 50,
        batch=4 if place.quick else 16,
        length=128,
        precision="bfloat16",
        seed=place.seed,
    )
    found = lowdim.finetune(recipe, out=place.home / "out", resume=True).facts
    return {"before": found["before"], **{k: v for k, v in found["validation"].items() if k != "rows"}}


def table(found: Found) -> str:
    """Return a table of each set, and a sentence for the claim."""
    lines = ["| set | objective | accuracy, ties apart | with ties | seeds |", "|---|---|---|---|---|"]
    for row, each in found.items():
        kind, _, name = row.rpartition(".")
        means = [statistics.fmean(one[key] for one in each) for key in ("accuracy", "accuracy_with_ties")]
        lines.append(f"| {kind} | {name} | {means[0]:.1%} | {means[1]:.1%} | {len(each)} |")
    lines.append("")
    for kind in SETS:
        todo, rival = found.get(f"{kind}.todo", []), found.get(f"{kind}.dpo", [])
        lines.append(f"- TODO over DPO on {kind}, ties apart: {beaten(todo, rival, 'accuracy')}.")
        lines.append(f"- The same with ties: {beaten(todo, rival, 'accuracy_with_ties')}.")
    return "\n".join(lines)

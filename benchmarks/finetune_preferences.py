"""Rows of `finetune.py`: preferences with a fifth of ties, by what learns from ties and what does not.

On the embedded model with LIFT; and in a miniature, a model of two blocks of width 64 that has read some Wikipedia, of
which all weights are trained.
"""

from __future__ import annotations

import json
import statistics
from functools import partial
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
SETS = {"miniature": 1, "made-up": 5, "arc_easy": 5}
"""What is learnt, and the minutes of a run."""
MINIATURE = {
    "name": "9m",
    "hidden_size": 64,
    "intermediate_size": 172,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 2048,
    "max_position_embeddings": 128,
}


def rows() -> list[Row]:
    """Return a row for each objective and set."""
    return [
        Row(f"{kind}.{name}", minutes, partial(run, kind, name))
        for kind, minutes in SETS.items()
        for name in OBJECTIVES
        if kind != "arc_easy" or name in ("todo", "dpo")
    ]


def pairs(kind: str, seed: int, count: int) -> list[preferences.Pair]:
    """Return pairs, a fifth of them ties; each seed has its own."""
    if kind != "arc_easy":
        return preferences.synthetic(count, ties=0.2, seed=seed)
    from lowdim.data import questions

    asked = questions.builtin(questions.CALIBRATION_SETS["arc_easy"])
    return preferences.from_questions(asked, ties=0.2, seed=seed)[:count]


def miniature(place: Place) -> str:
    """Return a small model that has read some text; made once for each seed."""
    out = place.shared / f"miniature-{place.seed}"
    steps = 5 if place.quick else 150
    recipe = lowdim.Pretraining(
        model=MINIATURE,
        optimizer={"name": "adamw", "lr": 4e-3},
        data={"vocabulary": 2048},
        steps=steps,
        length=64,
        batch=16,
        seed=place.seed,
    )
    return str(lowdim.pretrain(recipe, out=out, resume=True).out)


def run(kind: str, name: str, place: Place) -> dict[str, Any]:
    """Train on the same pairs in the same order; judge by the same others."""
    small = kind == "miniature"
    file = place.home / "pairs.jsonl"
    made = preferences.records(pairs(kind, place.seed, 60 if place.quick else 1000))
    file.write_text("".join(json.dumps(row) + "\n" for row in made))
    lift = {"name": "lift", "rank": 32, "budget": 16, "lr": 1e-4}
    recipe = lowdim.Finetuning(
        model=miniature(place) if small else MODEL,
        optimizer={"name": "adamw", "lr": 1e-3} if small else lift,
        preference=OBJECTIVES[name],
        data={"source": str(file), "validation": 0.9 if small else 0.2, "template": "question"},
        steps=3 if place.quick else 30 if small else 50,
        batch=4 if place.quick else 16,
        length=128,
        precision="float32" if small else "bfloat16",
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

"""Rows of `finetune.py`: a pruned and recovered model, fine-tuned and aligned with its masks, beside the dense one."""

from __future__ import annotations

import json
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import finetune_preferences as preferred
import finetune_tasks as tasks
from finetune import Found, Place, Row

import lowdim
from lowdim.core.masks import Masks

MODEL, TASK = "builtin:smollm2-135m", "arc_easy"


def rows() -> list[Row]:
    """Return answers and preferences on the dense and on the sparse model; the sparse one is made by the first."""
    return [
        Row(f"{what}.{kind}", 9, partial(run, what, kind))
        for what in ("answers", "dpo")
        for kind in ("dense", "sparse")
    ]


def sparse(place: Place) -> Path:
    """Return the embedded model, half of it pruned and recovered for some minutes; made once."""
    pruned, recovered = place.shared / "pruned", place.shared / "recovered"
    nothing: dict[str, Any] = {"evaluation": {"text": None}}
    few = {"samples": 4, "context": 64} if place.quick else {"samples": 32, "context": 512}
    if not recovered.exists():
        if not pruned.exists():
            recipe = lowdim.Recipe(sparsity=0.5, method="refit", calibration=few, **nothing)
            lowdim.prune(MODEL, recipe, out=pruned, resume=True)
        if place.quick:
            return pruned
        lowdim.recover(pruned, lowdim.Recovery(minutes=12, **nothing), out=recovered, resume=True)
    return recovered


def run(what: str, kind: str, place: Place) -> dict[str, Any]:
    """Train all weights, and judge."""
    model = MODEL if kind == "dense" else str(sparse(place))
    if what == "answers":
        made = _answers(place, model)
        found = tasks.judged(str(made.out), TASK, place)
    else:
        made = _preferences(place, model)
        found = {key: value for key, value in made.facts["validation"].items() if key != "rows"}
    changed = made.changes
    if kind == "sparse":
        assert Masks.load(made.out) == Masks.load(Path(model))
    return {**found, "before": made.facts["before"], "zeros": changed["zeros"], "filled": changed["filled"]}


def _answers(place: Place, model: str) -> Any:
    from lowdim.data import questions

    file = place.home / "rows.jsonl"
    asked = [{"question": d.question, "answer": d.answer} for d in questions.documents(TASK)]
    file.write_text("".join(json.dumps(row) + "\n" for row in (asked[:60] if place.quick else asked)))
    return _tuned(place, model, {"source": str(file), "validation": 0.1, "template": "question"}, None)


def _preferences(place: Place, model: str) -> Any:
    from lowdim.data.corpus import preferences

    file = place.home / "pairs.jsonl"
    made = preferences.records(preferred.pairs("made-up", place.seed, 60 if place.quick else 1000))
    file.write_text("".join(json.dumps(row) + "\n" for row in made))
    data = {"source": str(file), "validation": 0.2, "template": "question"}
    return _tuned(place, model, data, {"name": "dpo", "beta": 0.1})


def _tuned(place: Place, model: str, data: dict[str, Any], preference: dict[str, Any] | None) -> Any:
    recipe = lowdim.Finetuning(
        model=model,
        optimizer={"name": "adamw", "lr": 5e-5 if preference is None else 1e-5},
        preference=preference,
        data=data,
        steps=3 if place.quick else 50 if preference else tasks.TOKENS // (8 * 32),
        batch=4 if place.quick else 16 if preference else 8,
        length=128,
        precision="bfloat16",
        seed=place.seed,
    )
    return lowdim.finetune(recipe, out=place.home / "out", resume=True)


def table(found: Found) -> str:
    """Return a table."""
    lines = [
        "| trained on | model | accuracy | perplexity of Wikipedia | zeros filled | seeds |",
        "|---|---|---|---|---|---|",
    ]
    for row, each in found.items():
        what, _, kind = row.partition(".")
        text = f"{statistics.fmean(one['perplexity'] for one in each):.2f}" if "perplexity" in each[0] else ""
        zeros = f"{each[0]['filled']} of {each[0]['zeros']:,}"
        accuracy = statistics.fmean(one["accuracy"] for one in each)
        lines.append(f"| {what} | {kind} | {accuracy:.1%} | {text} | {zeros} | {len(each)} |")
    return "\n".join(lines)

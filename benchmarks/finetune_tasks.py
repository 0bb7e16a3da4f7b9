"""Rows of `finetune.py`: chosen weights against adapters and all weights, on two tasks and on the text of before.

Trained on the validation split of a task (its tenth is held out), judged on the test split, and by the perplexity of
Wikipedia articles, which nobody trained on. Every method has its rate chosen on the first seed by the held-out rows.
"""

from __future__ import annotations

import json
import statistics
from functools import partial
from typing import Any

from finetune import Found, Place, Row, beaten

import lowdim
from lowdim.data import questions
from lowdim.data.windows import windows
from lowdim.evaluate.quality.zeroshot import evaluate_tasks
from lowdim.models.disk.source import resolve
from lowdim.models.load import load, read_tokenizer

MODEL = "builtin:smollm2-135m"
TASKS = ("arc_easy", "openbookqa")
TOKENS, BATCH, BUDGET = 50_000, 8, 16
LIFT: dict[str, Any] = {"name": "lift", "rank": 32, "budget": BUDGET}
METHODS: dict[str, tuple[dict[str, Any], tuple[float, ...]]] = {
    "lift": ({"optimizer": LIFT}, (2e-4, 1e-3)),
    "random": ({"optimizer": {**LIFT, "mask": "random"}}, (2e-4, 1e-3)),
    "magnitude": ({"optimizer": {**LIFT, "mask": "magnitude"}}, (2e-4, 1e-3)),
    "smallest": ({"optimizer": {**LIFT, "mask": "smallest"}}, (2e-4, 1e-3)),
    "lora": ({"adapter": {"name": "lora", "rank": BUDGET}, "optimizer": {"name": "adamw"}}, (2e-4, 1e-3)),
    "dora": ({"adapter": {"name": "dora", "rank": BUDGET}, "optimizer": {"name": "adamw"}}, (2e-4, 1e-3)),
    "full": ({"optimizer": {"name": "adamw"}}, (1e-5, 5e-5)),
}


FIRST_SEED = ("smallest", "dora")
"""What is looked at with one seed alone."""


def rows() -> list[Row]:
    """Return a row for each method and task, and one for the model before."""
    before = [Row(f"{task}.before", 3, partial(judged, MODEL, task), seeds=False) for task in TASKS]
    return before + [
        Row(f"{task}.{name}", 7, partial(run, task, name), seeds=name not in FIRST_SEED)
        for task in TASKS
        for name in METHODS
    ]


def run(task: str, name: str, place: Place) -> dict[str, Any]:
    """Train with each rate on the first seed, with the best of them on the others, and judge."""
    rows_ = place.home / "rows.jsonl"
    asked = [{"question": d.question, "answer": d.answer} for d in questions.documents(task)]
    rows_.write_text("".join(json.dumps(row) + "\n" for row in (asked[:60] if place.quick else asked)))
    settings, rates = METHODS[name]
    chosen = place.shared / f"{task}.{name}.json"
    if chosen.exists():
        rates = (json.loads(chosen.read_text())["rate"],)
    made = {rate: trained(place, settings, rate, rows_) for rate in rates}
    best = min(made, key=lambda rate: made[rate].loss)
    if not chosen.exists() and place.seed == 0:
        chosen.write_text(json.dumps({"rate": best, "losses": {str(rate): each.loss for rate, each in made.items()}}))
    result = made[best]
    found = {"rate": best, "loss": result.loss, "numbers": result.facts["trained"]["numbers"]}
    found["state_bytes"] = result.run.get("state_bytes", result.facts["trained"]["state"])
    return {**found, **judged(str(result.out), task, place)}


def trained(place: Place, settings: dict[str, Any], rate: float, rows_: Any) -> Any:
    """Return what a method makes at a rate."""
    optimizer = {**settings["optimizer"], "lr": rate}
    tokens = 400 if place.quick else TOKENS
    recipe = lowdim.Finetuning(
        model=MODEL,
        **{**settings, "optimizer": optimizer},
        data={"source": str(rows_), "validation": 0.1, "template": "question"},
        steps=max(3, tokens // (BATCH * 32)),  # a row has some 32 tokens
        batch=BATCH,
        length=128,
        precision="bfloat16",
        seed=place.seed,
    )
    return lowdim.finetune(recipe, out=place.home / f"{rate:g}", resume=True)


def judged(model: str, task: str, place: Place) -> dict[str, Any]:
    """Return accuracy on the test split, and perplexity of the source text."""
    path = resolve(model).path
    network, tokenizer = load(path, "bfloat16"), read_tokenizer(path)  # type: ignore[arg-type]
    result = evaluate_tasks(network, tokenizer, [task], limit=20 if place.quick else 300)[task]
    text = windows("builtin", tokenizer, 512, limit=2 if place.quick else 20)
    return {"accuracy": result.value, "stderr": result.stderr, "perplexity": lowdim.perplexity(network, text).value}


def table(found: Found) -> str:
    """Return a table of each task, and a sentence for each claim."""
    lines = [
        "| task | method | numbers trained | accuracy | perplexity of Wikipedia | seeds |",
        "|---|---|---|---|---|---|",
    ]
    for row, each in found.items():
        task, _, name = row.partition(".")
        accuracy, perplexity = (statistics.fmean(one[key] for one in each) for key in ("accuracy", "perplexity"))
        numbers = f"{each[0]['numbers']:,}" if "numbers" in each[0] else ""
        lines.append(f"| {task} | {name} | {numbers} | {accuracy:.1%} | {perplexity:.2f} | {len(each)} |")
    lines.append("")
    for task in TASKS:
        for rival in ("random", "magnitude", "lora", "full"):
            one, other = found.get(f"{task}.lift", []), found.get(f"{task}.{rival}", [])
            lines.append(f"- LIFT over {rival} on {task}, accuracy: {beaten(one, other, 'accuracy')}.")
            lines.append(f"- The same, perplexity: {beaten(one, other, 'perplexity', lower=True)}.")
    return "\n".join(lines)

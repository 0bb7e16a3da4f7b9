"""The page of a pre-training: the verdict, the curves, what it was told to do, and what that cost."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lowdim.core.recipe.text import dump
from lowdim.report.draw import words
from lowdim.report.environment import paper, templates
from lowdim.report.files import beside, check_schema, result, sidecar, whole
from lowdim.report.pretrain.curves import log_of
from lowdim.report.pretrain.pictures import pictures
from lowdim.report.pruning.page import pairs

Json = Mapping[str, Any]

FILE, SCHEMA = "pretraining.json", 1
_METHODS = ("placement", "optimizer", "decay", "sampling", "from-scratch", "rank")


def page(out: Path) -> str:
    """Return the page of a directory.

    Raises:
        CheckpointError: its ``pretraining.json`` is damaged, or of another version.
    """
    facts = result(out / FILE, "pretrain", "validation")
    check_schema(facts, out / FILE, SCHEMA)
    return render(facts, sidecar(beside(out, ".run.json"))[0], log_of(out), out.name)


def render(facts: Json, run: Json, log: Sequence[Json], out: str = "OUT") -> str:
    """Return the page as text.

    Args:
        facts: what ``pretraining.json`` holds.
        run: what ``OUT.run.json`` holds, or nothing.
        log: the lines of ``OUT.log.jsonl``, or none.
        out: name of the directory.

    Raises:
        CheckpointError: something that every run records is missing.
    """
    with whole(FILE):
        return templates().get_template("pretrain.html").render(_content(facts, run, log, out))


def verdict(facts: Json) -> str:
    """Return what the run came to, in a sentence or two."""
    loss, perplexity = facts["validation"]["loss"], facts["validation"]["perplexity"]
    wrong = facts["diverged"]
    found = ""
    if wrong:
        where = "and ends above a uniform guess" if "uniform" in wrong else f"at step {wrong['step']:,}"
        found = f"Training diverged {where}. "
    found += (
        f"Validation loss {words.number(loss)} nats per token, perplexity {words.number(perplexity)}, after "
        f"{words.plural(facts['steps'], 'step')} on {facts['tokens']:,} tokens."
    )
    curve = facts["curve"]
    best = min(curve, key=lambda point: float(point["loss"]))
    if not wrong and best["step"] < curve[-1]["step"]:
        found += f" It was lowest, {words.number(best['loss'])}, at step {best['step']:,}."
    return found


def diverged(facts: Json) -> str:
    """Return where training diverged, and how, in a sentence; empty where it did not."""
    wrong = facts["diverged"]
    if wrong is None:
        return ""
    if "uniform" in wrong:
        return (
            f"Every number stayed finite, and the validation loss rose: at the end it is {words.number(wrong['loss'])} "
            f"nats per token, above {words.number(wrong['uniform'])}, that of a uniform guess. The model is that of "
            "the last step. Take a lower learning rate, a longer warm-up, or clip."
        )
    return (
        f"At step {wrong['step']:,} the loss was {words.clean(wrong['loss'])} and the gradient's norm "
        f"{words.clean(wrong['norm'])}. No weight followed it: the model is that of step {wrong['back']:,}, the last "
        "that was saved. Take a lower learning rate, a longer warm-up, or clip."
    )


def _content(facts: Json, run: Json, log: Sequence[Json], out: str) -> dict[str, Any]:
    recipe = facts["recipe"]
    return {
        "version": facts["versions"]["lowdim"],
        "model": model_name(recipe["model"]),
        "weights": facts["parameters"]["all"],
        "composition": _composition(recipe),
        "verdict": verdict(facts),
        "diverged": diverged(facts),
        "pictures": pictures(facts, run, log),
        "logged": bool(log),
        "rows": [_row(point) for point in facts["curve"]],
        "numbers": _numbers(facts, run),
        "recipe": dump(dict(recipe)),
        "methods": _papers(recipe),
        "command": words.clean(run.get("command") or ""),
        "repeat": shlex.join(["lowdim", "pretrain", "--recipe", "recipe.yaml", "--out", out]),
        "tables": _tables(facts, run),
    }


def model_name(model: str | Json) -> str:
    """Return how a model is called in a heading.

    Example:
        >>> model_name("35m"), model_name({"name": "9m", "num_hidden_layers": 12}), model_name({"model_type": "gpt2"})
        ('35m', '9m, changed', 'gpt2')
    """
    if isinstance(model, str):
        return words.clean(model)
    name = words.clean(model.get("name", model.get("model_type")))
    return f"{name}, changed" if "name" in model and len(model) > 1 else name


def _named(recipe: Json) -> list[tuple[str, str]]:
    """Return the kind and the name of every method in a recipe."""
    return [(kind, recipe[kind]["name"]) for kind in _METHODS if recipe.get(kind)]


def _composition(recipe: Json) -> list[tuple[str, str]]:
    return [
        *_named(recipe),
        ("learning rate", words.tick(recipe["optimizer"]["lr"])),
        ("schedule", recipe["schedule"]["name"]),
        ("batch", f"{recipe['batch']:,} x {recipe['length']:,}"),
        ("precision", recipe["precision"]),
        ("seed", str(recipe["seed"])),
    ]


def _row(point: Json) -> list[str]:
    perplexity = math.exp(min(point["loss"], 700.0))
    return [f"{point['step']:,}", f"{point['tokens']:,}", f"{point['loss']:.4f}", words.number(perplexity)]


def _numbers(facts: Json, run: Json) -> list[tuple[str, str, str]]:
    """Return the final numbers: what, its value, and what is to be known of it."""
    held, weights = facts["validation"], facts["parameters"]
    found = [
        ("Validation loss", f"{held['loss']:.4f}", f"nats per token, {words.plural(held['sequences'], 'sequence')}"),
        ("Perplexity", words.number(held["perplexity"]), "exp of that loss"),
        ("Parameters", f"{weights['all']:,}", f"{weights['blocks']:,} of them in blocks"),
        ("Tokens seen", f"{facts['tokens']:,}", f"in {words.plural(facts['steps'], 'step')}"),
    ]
    if jump := facts.get("jump"):
        both = f"{jump['before']:.4f} → {jump['after']:.4f}"
        found.append(("Validation loss by the new placement", both, "as the model came, and before the first step"))
    if run.get("tokens_per_s"):
        found.append(("Tokens a second", words.number(run["tokens_per_s"]), "in the median step"))
    if run.get("mfu"):
        peak = f"of {words.number(run['peak_flops_per_s'] / 1e9)} GFLOP/s, the best matrix product of this machine"
        found.append(("Model FLOPs utilisation", words.percent(run["mfu"]), peak))
    if run.get("peak_bytes"):
        processes = len(run["peak_bytes"])
        whose = "of the process" if processes == 1 else f"of the largest of {processes} processes"
        found.append(("Peak memory", words.size(max(run["peak_bytes"])), whose))
    return found


def _papers(recipe: Json) -> list[dict[str, str]]:
    return [{"role": k, "name": name, **found} for k, name in _named(recipe) if (found := paper(k, name))["title"]]


def _tables(facts: Json, run: Json) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return the small print as titled lists of key and value."""
    times = {stage["name"]: words.seconds(stage["seconds"]) for stage in run.get("stages", [])}
    found = [
        ("Text", pairs(facts["data"])),
        ("Time", pairs(times)),
        ("Machine", pairs({**run.get("machine", {}), "device": run.get("device"), "processes": run.get("processes")})),
        ("Versions", pairs(facts["versions"])),
    ]
    return [(title, rows) for title, rows in found if rows]

"""What is said of a run of sparse training: the networks, a sentence, the tables that terminal and page share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lowdim.report.draw import words
from lowdim.train.compare import TITLES

Json = Mapping[str, Any]
_ENOUGH = 5  # mask updates below which exploration has hardly begun
HINTS = {
    "dense": "the same network, no masks",
    "small": "dense, as few parameters",
    "static": "random ERK masks that stand still",
    "resampled": "random masks with its layers' numbers",
    "sparse": "this recipe",
}


@dataclass(frozen=True)
class Line:
    """A network of the headline table, written."""

    role: str
    title: str
    hint: str
    accuracy: str
    change: str
    zeros: str
    kept: str
    explored: str
    flops: str
    memory: str
    worst: str = ""


def members(facts: Json) -> dict[str, Json]:
    """Return the networks in the order of the tables: twins first."""
    found = facts.get("members", {})
    return {role: found[role] for role in TITLES if role in found}


def title(role: str, facts: Json) -> str:
    """Return a network's name; the sparse one goes by its method.

    Example:
        >>> title("sparse", {"recipe": {"training": {"name": "rigl"}}}), title("dense", {})
        ('Sparse, rigl', 'Dense')
    """
    name = facts.get("recipe", {}).get("training", {}).get("name", "")
    return f"{TITLES[role]}, {words.clean(name)}" if role == "sparse" and name else TITLES[role]


def error(accuracy: float, examples: int) -> float:
    """Return the standard error of an accuracy, sqrt(p (1 - p) / n).

    Example:
        >>> round(error(0.9, 10_000), 6)
        0.003
    """
    return math.sqrt(max(accuracy * (1 - accuracy), 0.0) / max(examples, 1))


def lines(facts: Json) -> list[Line]:
    """Return the headline table."""
    found = members(facts)
    dense = found.get("dense")
    examples = facts.get("data", {}).get("test", 0)
    made = []
    for role, member in found.items():
        accuracy, costs = member["test"]["accuracy"], member["costs"]
        storage = "sparse" if member["layers"] else "dense"
        flops = words.number(costs["training_flops"])
        if dense:
            flops = f"{costs['training_flops'] / dense['costs']['training_flops']:.2f}x"
        made.append(
            Line(
                role,
                title(role, facts),
                HINTS[role],
                f"{100 * accuracy:.2f} ± {100 * error(accuracy, examples):.2f}",
                "" if dense is None or role == "dense" else points(accuracy - dense["test"]["accuracy"]),
                "" if member["sparsity"] is None else words.percent(member["sparsity"]),
                f"{member['kept']:,}",
                "" if member["explored"] is None else f"{member['explored']:.3f}",
                flops,
                words.size(costs["training_bytes"][storage]["total"]),
                f"{100 * member['test']['worst_group']:.1f}" if "worst_group" in member["test"] else "",
            )
        )
    return made


def points(change: float) -> str:
    """Write a difference of accuracies.

    Example:
        >>> points(-0.0123), points(0.0)
        ('−1.23', '+0.00')
    """
    return words.signed(100 * change, 2)


def seconds(run: Json) -> list[str]:
    """Return how long each network trained, in the order of `lines`."""
    return [words.seconds(stage["seconds"]) for stage in run.get("stages", [])]


def verdict(facts: Json) -> str:
    """Return what came out, in one or two sentences, with the size below which differences say nothing."""
    found = members(facts)
    sparse = found["sparse"]
    accuracy = sparse["test"]["accuracy"]
    text = f"With {words.percent(sparse['sparsity'])} zeros it gets {100 * accuracy:.1f}% of the test examples right"
    against = {
        "dense": "the dense network {}",
        "small": "a dense one of as few parameters {}",
        "static": "random masks that stand still {}",
        "resampled": "random masks with as many weights in each layer {}",
    }
    others = [
        phrase.format(f"{100 * found[role]['test']['accuracy']:.1f}%")
        for role, phrase in against.items()
        if role in found
    ]
    text += "; " + ", ".join(others) if others else ""
    if "worst_group" in sparse["test"]:
        text += f". Of its worst group it gets {100 * sparse['test']['worst_group']:.1f}% right"
        if "dense" in found:
            text += f", the dense network {100 * found['dense']['test']['worst_group']:.1f}%"
    noise = 2 * math.sqrt(2) * error(accuracy, facts["data"]["test"])
    return f"{text}. Differences below {100 * noise:.1f} points can be chance: this is one seed.{_hardly_moved(facts)}"


def _hardly_moved(facts: Json) -> str:
    """Return a warning where a method had too few updates to show what it can do."""
    method = facts["recipe"]["training"]
    moved = sum("kept" in update for update in members(facts)["sparse"]["updates"])
    if "every" not in method or moved >= _ENOUGH:
        return ""
    return (
        f" The masks moved {words.plural(moved, 'time')} in {facts['steps']['total']} steps, too seldom to explore: "
        f"lower training.every (now {method['every']}) or train longer."
    )


def execution(facts: Json) -> str:
    """Return what was executed and what was counted, in one sentence.

    Example:
        >>> execution({"execution": "csr"}).split(";")[0]
        'FLOPs and memory are counted'
    """
    if facts["execution"] == "csr":
        return (
            "FLOPs and memory are counted; the sparse networks really stored and multiplied kept weights alone, so "
            "that their times can be held against the dense ones."
        )
    return (
        "FLOPs and memory are counted for an executor that stores and multiplies kept weights alone; this run "
        "multiplied dense weights by their zeros, and was no faster for them."
    )


def beyond(facts: Json) -> tuple[list[str], list[list[str]]]:
    """Return the heads and rows of what is measured besides accuracy."""
    rows = []
    found = members(facts)
    more = {"noisy_accuracy": "With noise", "robust_accuracy": "Attacked"}
    more = {key: head for key, head in more.items() if any(key in member["test"] for member in found.values())}
    heads = ["Network", "Loss", "Calibration error", *more.values()]
    for role, member in found.items():
        test = member["test"]
        cells = [title(role, facts), f"{test['loss']:.3f}", words.percent(test["calibration_error"])]
        cells += [words.percent(test.get(key)) for key in more]
        rows.append([*cells, *(words.percent(share) for share in test["by_difficulty"])])
    return [*heads, "Easy third", "Middle third", "Hard third"], rows

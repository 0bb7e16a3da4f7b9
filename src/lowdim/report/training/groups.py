"""What a run says of groups of samples: the worst of each network, all of them in a table, and what was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lowdim.report.draw import words
from lowdim.report.training.facts import error, members, title

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """An accuracy of a group, in the table, and whether it is its network's lowest."""

    text: str
    worst: bool


@dataclass(frozen=True)
class GroupTable:
    """Accuracy by group: a column for each network, a row for each group with its samples in training and test."""

    heads: list[str]
    rows: list[tuple[str, str, str, list[Cell]]]
    says: str


def group_table(facts: Json) -> GroupTable | None:
    """Return the accuracy of every network on every group of the test, or None for data without labels of groups."""
    counts = facts["data"].get("groups")
    found = {role: member for role, member in members(facts).items() if "groups" in member["test"]}
    if not counts or not found:
        return None
    rows = []
    for name, count in counts.items():
        cells = []
        for member in found.values():
            accuracy = member["test"]["groups"].get(name)
            lowest = accuracy is not None and accuracy == member["test"]["worst_group"]
            cells.append(Cell("" if accuracy is None else _accuracy(accuracy, count["test"]), lowest))
        rows.append((words.clean(name), f"{count['train']:,}", f"{count['test']:,}", cells))
    return GroupTable([title(role, facts) for role in found], rows, trained(facts))


def _accuracy(accuracy: float, examples: int) -> str:
    return f"{100 * accuracy:.1f} ± {100 * error(accuracy, examples):.1f}"


def trained(facts: Json) -> str:
    """Return what was minimised over which samples, in one or two sentences.

    Example:
        >>> trained({"recipe": {"objective": {"name": "rest"}}, "data": {}})
        'Trained with objective rest, the twins as well.'
    """
    recipe = facts["recipe"]
    chosen = [f"{kind} {words.clean(recipe[kind]['name'])}" for kind in ("objective", "sampler") if kind in recipe]
    text = f"Trained with {' and '.join(chosen)}, the twins as well." if chosen else "Trained with every sample alike."
    if by := recipe.get("groups"):
        text += f" Groups are by {words.clean(by)}."
    if ranks := facts["data"].get("ranks"):
        text += f" Ranks by {words.clean(ranks['method'])} run from 1 to {ranks['last']}"
        text += f"; by them {ranks['conflicting']:,} training samples conflict." if "conflicting" in ranks else "."
    if early := facts.get("early"):
        epochs = words.plural(early["epochs"], "epoch")
        text += f" The first network got {early['wrong']:,} of {early['samples']:,} wrong after {epochs}"
        if "conflicting" in early:
            text += f", {early['wrong_and_conflicting']:,} of the {early['conflicting']:,} that conflict among them"
        text += "; its arithmetic is not in the table."
    return text

"""The page of a composition: the sentence, the table of measures, what each stage did and broke."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lowdim.report.draw import words
from lowdim.report.draw.bars import bars
from lowdim.report.environment import paper, templates
from lowdim.report.files import result
from lowdim.report.pruning.figures import Picture
from lowdim.report.pruning.page import pairs

Json = Mapping[str, Any]


def page(out: Path) -> str:
    """Return the page of a directory.

    Raises:
        CheckpointError: its file is damaged, or of another version.
    """
    return render(result(out / "compose.json", "compose"))


def render(found: Json) -> str:
    """Return the page as text.

    Args:
        found: the contents of ``compose.json``.
    """
    orders = {name: words.clean(said) or "no stage" for name, said in found["orders"].items()}
    picture = _picture(found)
    return (
        templates()
        .get_template("compose.html")
        .render(
            version=found["lowdim"],
            model=words.clean(found["model"]),
            sentence=words.clean(found["sentence"]),
            orders=list(orders.values()),
            both=len(orders) > 1,
            rows=[_row(row, list(orders)) for row in found["table"]],
            pictures=[] if picture is None else [picture],
            chains=[(orders[name], [_stage(each, found) for each in found["stages"][name]]) for name in orders],
            papers=_papers(found),
            tables=[("Perplexity protocol", pairs(found["protocol"])), ("Machine", pairs(found["machine"]))],
        )
    )


def _row(row: Json, names: list[str]) -> list[str]:
    def error(value: float | None) -> str:
        return words.MISSING if value is None else words.number(value) + (f" {row['unit']}" if row["unit"] else "")

    cells = [words.clean(row["title"]), words.number(row["first"])]
    cells += [words.number(row["orders"][name]) for name in names]
    return cells + ([error(row["error"]), error(row["sensitivity"])] if len(names) > 1 else [])


def _picture(found: Json) -> Picture | None:
    """Draw order-free error and order sensitivity side by side, where there are two orders."""
    rows = [row for row in found["table"] if row["sensitivity"] is not None]
    if not rows:
        return None
    names = [words.clean(row["title"]) for row in rows]
    columns = [
        ("Order-free error", [row["error"] for row in rows], words.number),
        ("Order sensitivity", [row["sensitivity"] for row in rows], words.number),
    ]
    svg = bars("composability", "Order-free error and order sensitivity of each measure", names, columns)
    caption = "How far the better order is from the ideal, and how much the order matters; perplexity in nats."
    return Picture("Composability", caption, svg)


def _stage(stage: Json, found: Json) -> dict[str, Any]:
    measures = {row["measure"]: row["title"] for row in found["table"]}
    return {
        "name": words.clean(stage["stage"]),
        "settings": pairs({key: value for key, value in stage["settings"].items() if value != []}),
        "facts": pairs({key: _short(value) for key, value in stage["facts"].items() if key != "ranks"}),
        "broken": [words.clean(each["sentence"]) for each in stage["broken"]],
        "holds": [
            f"{kind} in {held['matrices']:,} {'matrix' if held['matrices'] == 1 else 'matrices'}"
            for kind, held in stage["holds"].items()
            if held["matrices"]
        ],
        "measures": [
            (words.clean(measures[key]), words.number(value))
            for key, value in stage["measures"].items()
            if key in measures and value is not None
        ],
    }


def _short(value: Any) -> Any:
    """Return a list of numbers, such as a loss before and after, as what it was and became."""
    if isinstance(value, list) and value and all(isinstance(each, int | float) for each in value):
        return " → ".join(words.number(each) for each in value)
    return value


def _papers(found: Json) -> list[dict[str, str]]:
    named = dict.fromkeys(stage["stage"] for stages in found["stages"].values() for stage in stages)
    return [{"name": words.clean(name), **known} for name in named if (known := paper("stage", name))["arxiv"]]

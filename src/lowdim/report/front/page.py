"""The page of a front: the sentence, the pictures with the front drawn, the table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lowdim.report.draw import words
from lowdim.report.environment import templates
from lowdim.report.files import result
from lowdim.report.front.draw import Mark, staircase
from lowdim.report.pruning.figures import Picture
from lowdim.report.pruning.page import pairs

Json = Mapping[str, Any]
_AXES: dict[str, tuple[str, Callable[[float], str]]] = {
    "bytes_per_token": ("weights read per token", words.size),
    "file_bytes": ("size of the files", words.size),
    "seconds_per_token": ("milliseconds per token", lambda seconds: words.tick(1e3 * seconds)),
}


def page(out: Path) -> str:
    """Return the page of a directory.

    Raises:
        CheckpointError: its file is damaged, or of another version.
    """
    return render(result(out / "front.json", "front"))


def render(found: Json) -> str:
    """Return the page as text.

    Args:
        found: the contents of ``front.json``.
    """
    said = found.get("verdicts", {})
    tasks = list(dict.fromkeys(name for row in found["rows"] for name in row["tasks"]))
    return (
        templates()
        .get_template("front.html")
        .render(
            version=found["lowdim"],
            model=words.clean(found["model"]),
            sentence=words.clean(found["sentence"]),
            pictures=[picture for name in _AXES if (picture := _picture(found, name)) is not None],
            tasks=[words.clean(name) for name in tasks],
            rows=[_row(row, tasks, found) for row in found["rows"]],
            against=words.clean(said.get("against", "")),
            verdicts=[
                (words.clean(form), words.clean(verdict["sentence"])) for form, verdict in said.get("forms", {}).items()
            ],
            tables=[("Perplexity protocol", pairs(found["protocol"])), ("Machine", pairs(found["machine"]))],
        )
    )


def _picture(found: Json, cost: str) -> Picture | None:
    label, write_x = _AXES[cost]
    kept = found["fronts"][cost]
    marks = []
    for row in found["rows"]:
        value = row.get(cost)
        if cost == "seconds_per_token" and row["tokens_per_s"]:
            value = 1 / row["tokens_per_s"]
        if value and row["perplexity"] is not None:
            name = words.clean(row["form"])
            marks.append(Mark(value, row["perplexity"], name, row["sort"] == "dense", row["form"] in kept))
    if len(marks) < 2:
        return None
    svg = staircase(f"front-{cost}", f"Perplexity against {label}, a point per form", marks, label, write_x)
    caption = "Ring dense, dot sparse; left and down is better. The line joins the forms that no other beats."
    return Picture(f"Perplexity against {label}", caption, svg)


def _row(row: Json, tasks: list[str], found: Json) -> dict[str, Any]:
    return {
        "name": words.clean(row["form"]),
        "front": row["form"] in found["fronts"]["bytes_per_token"],
        "perplexity": words.number(row["perplexity"]),
        "tasks": [words.percent(row["tasks"].get(name)) for name in tasks],
        "bytes": words.size(row["bytes_per_token"]),
        "file": words.size(row["file_bytes"]),
        "speed": words.number(row["tokens_per_s"]),
        "note": words.clean(row["note"]),
    }

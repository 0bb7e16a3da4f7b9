"""The page of a stress: the sentence, the drop of each task over sparsity, the tables with their intervals."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lowdim.evaluate.quality.tasks import HARD
from lowdim.report.draw import words
from lowdim.report.draw.tracks import Track, shades, tracks
from lowdim.report.environment import templates
from lowdim.report.files import result
from lowdim.report.pruning.figures import Picture
from lowdim.report.pruning.page import pairs

Json = Mapping[str, Any]
_STATES = {
    "within": "within",
    "beyond": "lost",
    "undecided": "too few questions",
    "chance": "dense guesses: proves nothing",
}


def page(out: Path) -> str:
    """Return the page of a directory.

    Raises:
        CheckpointError: its file is damaged, or of another version.
    """
    return render(result(out / "stress.json", "stress"))


def render(found: Json) -> str:
    """Return the page as text.

    Args:
        found: the contents of ``stress.json``.
    """
    return (
        templates()
        .get_template("stress.html")
        .render(
            version=found["lowdim"],
            model=words.clean(found["model"]),
            sentence=words.clean(found["sentence"]),
            pictures=[picture for form in _forms(found) if (picture := _picture(found, form)) is not None],
            dense=[_dense(name, task) for name, task in found["dense"]["tasks"].items()],
            points=[_point(row) for row in found["rows"]],
            tables=[("Perplexity protocol", pairs(found["protocol"])), ("Machine", pairs(found["machine"]))],
        )
    )


def _forms(found: Json) -> list[str]:
    return list(dict.fromkeys(row["form"] for row in found["rows"]))


def _picture(found: Json, form: str) -> Picture | None:
    rows = [row for row in found["rows"] if row["form"] == form]
    known = [name for name, task in rows[0]["tasks"].items() if task["state"] != "chance"]
    if len(rows) < 2 or not known:
        return None
    lines = [
        Track(words.clean(name), [(100 * row["sparsity"], 100 * row["tasks"][name]["drop"]) for row in rows], tone)
        for name, tone in zip(known, shades(len(known)), strict=True)
    ]
    svg = tracks(
        f"drop-{form}", f"Drop of each task over the share of zeros, {form}", lines, xlabel="% zeros", write=_pp
    )
    return Picture(
        f"What is lost, {form}", "Points of accuracy below the dense model, on tasks that it does not guess.", svg
    )


def _pp(value: float) -> str:
    return words.signless(f"{value:.1f}")


def _dense(name: str, task: Json) -> list[str]:
    family = next((family for family, names in HARD.items() if name in names), "")
    return [
        words.clean(name),
        family,
        words.percent(task["accuracy"]),
        _ends(task["interval"]),
        words.percent(task["chance"]),
        f"{task['questions']:,}",
    ]


def _point(row: Json) -> dict[str, Any]:
    return {
        "title": f"{words.percent(row['sparsity'])} zeros, {row['form']}",
        "perplexity": words.number(row["perplexity"]),
        "sentence": words.clean(row["sentence"]),
        "rows": [
            [
                words.clean(name),
                words.percent(task["pruned"]),
                _ends(task["pruned_interval"]),
                words.signed(100 * task["drop"], 1),
                _ends(task["drop_interval"]),
                f"{task['lost']} / {task['won']}",
                f"{task['p']:.3f}",
                f"{100 * task['tolerance']:g}",
                _STATES[task["state"]],
            ]
            for name, task in row["tasks"].items()
        ],
    }


def _ends(interval: list[float]) -> str:
    low, high = (_pp(100 * end) for end in interval)
    return f"{low} to {high}"

"""The page of a diagnosis as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lowdim
from lowdim.report.build import write_page
from lowdim.report.diagnose.pictures import pictures, short_names
from lowdim.report.draw import words
from lowdim.report.environment import templates
from lowdim.report.pruning.page import pairs

Json = Mapping[str, Any]
_HALVES = {
    "sensitivity": "Nats lost without one block",
    "influence": "Block influence",
    "angle": "Angular distance",
    "jacobian": "‖J − I‖ / ‖I‖",
    "gradient": "Gradient norm",
    "variance": "Variance of the stream",
    "typical": "Variance of the median token",
}
_SIDES = ("shallower", "deeper")
_COLUMNS = {
    "variance": "Variance",
    "typical": "Median token",
    "angle": "Angle",
    "influence": "Influence",
    "sensitivity": "Without it, nats",
    "error": "±",
    "perplexity": "Perplexity",
    "gradient": "Gradient",
    "jacobian": "‖J − I‖",
}


def write(models: Sequence[Json], path: Path) -> Path:
    """Write the page, and return its path.

    Args:
        models: what `Diagnosis.to_dict` returns, one for each model.
        path: the file.

    Raises:
        LowdimError: the page cannot be written.
    """
    write_page(path, render(models))
    return path


def render(models: Sequence[Json]) -> str:
    """Return the page as text."""
    names = short_names(models)
    last = models[-1]
    return (
        templates()
        .get_template("diagnose.html")
        .render(
            version=lowdim.__version__,
            title=names[0] if len(models) == 1 else f"{names[0]} to {names[-1]}",
            count=len(last["blocks"]),
            verdict=verdict(last, names[-1] if len(models) > 1 else ""),
            notes=[words.clean(note) for note in last["notes"]],
            pictures=pictures(models),
            halves=_halves(last) if len(models) == 1 else side_by_side(models, names),
            heads=list(_columns(last).values()),
            rows=[_row(block, _columns(last)) for block in last["blocks"]],
            last=names[-1] if len(models) > 1 else "",
            tables=[("Perplexity protocol", pairs(last["protocol"] | {"compute": last["compute"]}))],
        )
    )


def verdict(model: Json, name: str = "") -> str:
    """Return what the diagnosis comes to in one or two sentences."""
    halves, ratios = model["depth"]["halves"], model["depth"]["last_over_first"]
    start = f"{name}: p" if name else "P"
    found = [f"{start}erplexity {words.number(model['perplexity'])}."]
    if "sensitivity" in halves:
        shallow, deep = halves["sensitivity"]["shallower"], halves["sensitivity"]["deeper"]
        found.append(
            f"Leaving out one block costs {words.number(shallow)} nats in the shallower half and {words.number(deep)} "
            "in the deeper (medians)."
        )
        least = min((block for block in model["blocks"] if block["sensitivity"] is not None), key=_sensitivity)
        found.append(f"Block {least['index']} is needed least: {words.number(least['sensitivity'])} nats.")
    if "gradient" in ratios:
        found.append(f"The last block's gradient is {words.number(ratios['gradient'])} times the first one's.")
    return " ".join(found)


def _sensitivity(block: Json) -> float:
    return float(block["sensitivity"])


def _halves(model: Json) -> tuple[list[str], list[list[str]]]:
    """Return heads and rows of one model's table: a row per measure."""
    halves, ratios = model["depth"]["halves"], model["depth"]["last_over_first"]
    rows = [
        [title, *(words.number(halves[key][half]) for half in _SIDES), words.number(ratios.get(key))]
        for key, title in _HALVES.items()
        if key in halves
    ]
    return ["", "Shallower half", "Deeper half", "Last over first"], rows


def side_by_side(models: Sequence[Json], names: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Return heads and rows of several models' table: a row per model, both halves in each cell."""
    keys = [key for key in _HALVES if any(key in model["depth"]["halves"] for model in models)]
    rows = [
        [name, words.number(model["perplexity"]), *(_pair(model["depth"]["halves"].get(key)) for key in keys)]
        for model, name in zip(models, names, strict=True)
    ]
    return ["", "Perplexity", *(_COLUMNS[key] for key in keys)], rows


def _pair(halves: Json | None) -> str:
    return words.MISSING if halves is None else " / ".join(words.number(halves[half]) for half in _SIDES)


def _columns(model: Json) -> dict[str, str]:
    return {key: head for key, head in _COLUMNS.items() if any(block[key] is not None for block in model["blocks"])}


def _row(block: Json, columns: Mapping[str, str]) -> list[str]:
    return [str(block["index"]), *(words.number(block[key]) for key in columns)]

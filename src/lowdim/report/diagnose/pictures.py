"""The pictures of a diagnosis: a line over the blocks per model, and heat maps of the last model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lowdim.report.draw import charts, words
from lowdim.report.draw.axes import Numbers, finite
from lowdim.report.draw.grid import Grid, kind_of
from lowdim.report.draw.heatmap import heatmap
from lowdim.report.draw.tracks import Track, tracks
from lowdim.report.pruning.figures import Picture

Json = Mapping[str, Any]
_MOST_LINES = 6  # models whose lines can be told apart; more become rows of a heat map
_MOST_ROWS = 16


@dataclass(frozen=True)
class _Measure:
    """A number of each block: its key, the picture's title and caption, how it is written, and its colour."""

    key: str
    title: str
    caption: str
    write: Callable[[float], str] = words.tick
    hue: str = "zeros"


_MEASURES = (
    _Measure(
        "sensitivity",
        "What the model loses without a block",
        "Nats per token that the loss grows when one block is left out; near 0, the block does nothing.",
        hue="cost",
    ),
    _Measure(
        "influence",
        "Block influence",
        "1 − cos of what enters and what leaves a block, the mean over tokens.",
    ),
    _Measure(
        "variance",
        "Variance of the residual stream",
        "Over tokens and channels, behind each block. Where it grows fast, each later block adds relatively little.",
    ),
    _Measure(
        "typical",
        "Variance of the median token",
        "Of each token over channels, the median: without the few tokens that some blocks make enormous.",
    ),
    _Measure(
        "jacobian",
        "Distance of the Jacobian from the identity",
        "‖J − I‖ over ‖I‖, from random probes: 0 for a block that passes on what it is given.",
    ),
    _Measure(
        "gradient",
        "Gradient norm",
        "Of the mean loss over all parameters of a block. Level with depth where all blocks learn alike.",
    ),
)


@dataclass(frozen=True)
class _Cell:
    """A number of one matrix."""

    block: int
    kind: str
    value: float


def short_names(models: Sequence[Json]) -> list[str]:
    """Return what tells each model from the others: the end of its path, or as much of it as is needed.

    Example:
        >>> short_names([{"model": "runs/a/step-1"}, {"model": "runs/b/step-1"}, {"model": "builtin:x"}])
        ['a/step-1', 'b/step-1', 'x']
    """
    parts = [words.clean(model["model"]).replace("builtin:", "").rstrip("/").split("/") for model in models]
    for size in range(1, max(map(len, parts)) + 1):
        found = ["/".join(part[-size:]) for part in parts]
        shorts = [
            part[-1] if [p[-1] for p in parts].count(part[-1]) == 1 else name
            for part, name in zip(parts, found, strict=True)
        ]
        if len(set(shorts)) == len(shorts):
            return shorts
    return [f"{name} ({place})" for place, name in enumerate(shorts)]


def pictures(models: Sequence[Json]) -> list[Picture]:
    """Return the pictures for which something was measured."""
    names = short_names(models) if len(models) > 1 else [""]
    found = [_over_blocks(measure, models, names) for measure in _MEASURES]
    found += _over_steps(models)
    last, whose = models[-1], f" Of {names[-1]}." if len(models) > 1 else ""
    layers = [_by_layer(last, whose, "gradient"), _by_layer(last, whose, "alpha")]
    if len(models) == 1 and layers[0] is not None:  # which has the same line
        found.pop()
    found += [_angles(last, whose), *layers]
    return [picture for picture in found if picture is not None]


def _series(model: Json, key: str) -> Numbers:
    return [block[key] for block in model["blocks"]]


def _over_blocks(measure: _Measure, models: Sequence[Json], names: Sequence[str]) -> Picture | None:
    series = {name: _series(model, measure.key) for name, model in zip(names, models, strict=True)}
    series = {name: values for name, values in series.items() if finite(values)}
    if not series:
        return None
    blocks = range(max(map(len, series.values())))
    if len(series) <= _MOST_LINES:
        svg = charts.lines(measure.key, measure.title, series, write=measure.write, xlabel="block", blocks=blocks)
        return Picture(measure.title, measure.caption, svg)
    rows = [[*values, *[None] * (len(blocks) - len(values))] for values in series.values()]
    svg = heatmap(
        measure.key,
        measure.title,
        list(series),
        blocks,
        rows,
        per_block=rows[-1],
        write=measure.write,
        hue=measure.hue,
    )
    return Picture(measure.title, f"{measure.caption} A row per model; the line is the last.", svg)


def _over_steps(models: Sequence[Json]) -> list[Picture]:
    """Return the course of a run's numbers: of the whole model, and of its two halves."""
    steps: list[Any] = [model.get("step") for model in models]
    if len(models) < 2 or None in steps or len(set(steps)) < len(steps):
        return []
    depths = [model["depth"] for model in models]
    drawn: dict[str, dict[str, Numbers]] = {
        "Perplexity": {"": [model["perplexity"] for model in models]},
        "Gradient, last block over first": {"": [d["last_over_first"].get("gradient") for d in depths]},
    }
    for each in (each for each in _MEASURES if each.key in ("sensitivity", "influence", "jacobian")):
        halves = [depth["halves"].get(each.key, {}) for depth in depths]
        drawn[each.title] = {side: [half.get(side) for half in halves] for side in ("shallower", "deeper")}
    found: list[Picture] = []
    for title, series in drawn.items():
        lines = [
            Track(name, [(s, v) for s, v in zip(steps, values, strict=True) if v is not None], tone)
            for (name, values), tone in zip(series.items(), ("blue", "orange"), strict=False)
            if finite(values)
        ]
        if lines:
            svg = tracks(f"steps-{len(found)}", title, lines, xlabel="step", write=words.tick)
            found.append(
                Picture(f"{title}, over the run", "Of halves: medians of their blocks." * (len(series) > 1), svg)
            )
    return found


def _angles(model: Json, whose: str) -> Picture | None:
    angles = model["angles"]
    if len(angles) < 2:
        return None
    step = math.ceil(len(angles) / _MOST_ROWS)
    spans = range(0, len(angles), step)
    rows = [[row[span] if span < len(row) else None for row in angles] for span in spans]
    title = "Angular distance"
    svg = heatmap(
        "angles",
        "Angular distance over n blocks, by the block where they begin",
        [f"n = {span + 1}" for span in spans],
        range(len(angles)),
        rows,
        per_block=rows[0],
        write=words.tick,
        hue="zeros",
        missing="beyond the last block",
    )
    caption = (
        "arccos(cos) / π of what enters block l and what leaves the n-th from there, at the last token. Pale: these n "
        f"blocks change little. The line: n = 1.{whose}"
    )
    return Picture(title, caption, svg)


def _by_layer(model: Json, whose: str, key: str) -> Picture | None:
    cells = [
        _Cell(layer["block"], kind_of(layer["name"], layer["block"]), layer[key])
        for layer in model["layers"]
        if layer[key] is not None
    ]
    grid = Grid(cells)
    if not cells or len(grid.kinds) > 40:
        return None
    title, caption, reduce = _LAYERS[key]
    per_block = _series(model, "gradient") if key == "gradient" else grid.per_block(reduce)
    per_block = [per_block[block] for block in grid.blocks] if key == "gradient" else per_block
    svg = heatmap(
        f"layers-{key}",
        title,
        grid.labels,
        grid.blocks,
        grid.table(reduce),
        per_block=per_block,
        write=words.tick,
        hue="zeros",
    )
    return Picture(title, caption + whose, svg)


def _root(cells: list[_Cell]) -> float | None:
    return math.hypot(*(cell.value for cell in cells)) if cells else None


def _mean(cells: list[_Cell]) -> float | None:
    return math.fsum(cell.value for cell in cells) / len(cells) if cells else None


_LAYERS: dict[str, tuple[str, str, Callable[[list[_Cell]], float | None]]] = {
    "gradient": (
        "Gradient norm, layer by layer",
        "Of each matrix below, of each block's parameters above.",
        _root,
    ),
    "alpha": (
        "Heavy tails",
        "Hill exponent of each spectrum from its median upwards (AlphaDecay's estimator: median; its default is hill "
        "in the JSON); a small one marks a well-trained layer. The line: the mean.",
        _mean,
    ),
}

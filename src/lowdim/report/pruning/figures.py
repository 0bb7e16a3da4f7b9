"""Which pictures a run deserves, and one line under each that says what it shows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lowdim.report.draw import bars, charts, words
from lowdim.report.draw.axes import finite
from lowdim.report.draw.grid import Grid, Pruned, kind_of, layers_of, mean_error, mean_sparsity, short_names
from lowdim.report.draw.heatmap import heatmap
from lowdim.report.pruning.summary import section

Json = Mapping[str, Any]
Row = tuple[int, str, tuple[float, ...]]  # block, kind of layer, numbers
_MOST_ROWS = 40  # kinds of layer in a heatmap
_MOST_BARS = 12
_MOST_POINTS = 1500
_MEASURES = {"owl": "outlier share", "alpha": "Hill α"}


@dataclass(frozen=True)
class Picture:
    """A chart with its heading and its caption."""

    title: str
    caption: str
    svg: str


def pictures(manifest: Json, run: Json) -> list[Picture]:
    """Return the charts for which the run recorded something."""
    layers = layers_of(manifest)
    grid = Grid(layers)
    found = [
        _sparsity(manifest, grid),
        _error(grid),
        _outliers(manifest),
        _allocation(manifest, grid, layers),
        *_probes(manifest),
        _tasks(manifest),
        _stages(run),
    ]
    return [picture for picture in found if picture is not None]


def _where(layer: Pruned) -> str:
    return layer.kind if layer.block is None else f"block {layer.block}, {layer.kind}"


def _extremes(layers: Sequence[Pruned], value: Callable[[Pruned], float], write: Callable[[float], str]) -> str:
    low, high = min(layers, key=value), max(layers, key=value)
    if write(value(low)) == write(value(high)):
        return f"{write(value(low))} in every layer."
    return f"From {write(value(low))} ({_where(low)}) to {write(value(high))} ({_where(high)})."


def _shown(grid: Grid[Pruned]) -> bool:
    return bool(grid.blocks) and len(grid.kinds) <= _MOST_ROWS


def _heatmap(grid: Grid[Pruned], key: str, label: str, mean: Any, **look: Any) -> str:
    return heatmap(key, label, grid.labels, grid.blocks, grid.table(mean), per_block=grid.per_block(mean), **look)


def _sparsity(manifest: Json, grid: Grid[Pruned]) -> Picture | None:
    if not _shown(grid):
        return None
    target = section(manifest, "sparsity").get("target")
    label = "Sparsity of every layer, by decoder block and kind of layer"
    svg = _heatmap(grid, "sparsity", label, mean_sparsity, write=words.percent, hue="zeros", target=target)
    caption = _extremes(grid.layers, lambda layer: layer.sparsity, words.percent)
    dashed = "" if target is None else f" Dashed: the target, {words.percent(target)}."
    return Picture(
        "Where the zeros are", "Share of zeros: each block above, each layer below. " + caption + dashed, svg
    )


def _error(grid: Grid[Pruned]) -> Picture | None:
    measured = [layer for layer in grid.layers if layer.error is not None]
    if not measured or not _shown(grid):
        return None
    label = "Relative reconstruction error of every layer, by decoder block and kind of layer"
    svg = _heatmap(grid, "error", label, mean_error, write=words.tick, hue="cost")
    caption = _extremes(measured, lambda layer: layer.error or 0.0, words.number)
    caption = "Error of each layer's output on the calibration text. " + caption
    return Picture("What it cost, layer by layer", caption, svg)


def _outliers(manifest: Json) -> Picture | None:
    found = section(manifest, "probes", "outliers")
    series = {f"M = {m}": list(found[m]) for m in sorted(found, key=float) if finite(found[m] or [])}
    if not series:
        return None
    blocks = range(max(len(values) for values in series.values()))
    svg = charts.lines(
        "outliers",
        "Share of outliers per decoder block",
        series,
        write=lambda share: words.percent(share, 3 if share < 0.001 else 2),
        xlabel="block",
        blocks=blocks,
    )
    return Picture(
        "Outliers per block",
        "Share of scores above M times their mean, in the dense model. OWL prunes less where there are many.",
        svg,
    )


def _allocation(manifest: Json, grid: Grid[Pruned], layers: Sequence[Pruned]) -> Picture | None:
    rows: list[Row] = [
        (layer.block or 0, layer.kind, (layer.value, layer.sparsity)) for layer in layers if layer.value is not None
    ]
    if len({values[0] for *_, values in rows}) < 2:
        return None
    name = words.clean(section(manifest, "allocation").get("name") or "the allocation")
    measure = _MEASURES.get(name, f"what {name} measured")
    points = [
        (value, share, block, f"block {block}, {kind}: {words.number(value)} gave {words.percent(share)}")
        for block, kind, (value, share) in _thinned(rows)
    ]
    svg = charts.scatter(
        "allocation",
        f"The {measure} of each layer, against the sparsity it gave",
        points,
        xlabel=measure,
        write=words.percent,
        blocks=grid.blocks or [0],
    )
    caption = f"Sparsity against {measure}, a point per layer, first block faint, last strong."
    return Picture("Why there", caption, svg)


def _thinned(rows: list[Row]) -> list[Row]:
    """Average over the experts of a block where there are more layers than a chart can hold.

    Example:
        >>> len(_thinned([(0, "up", (1.0,))] * 5))
        5
    """
    if len(rows) <= _MOST_POINTS:
        return rows
    groups: dict[tuple[int, str], list[tuple[float, ...]]] = {}
    for block, kind, values in rows:
        groups.setdefault((block, kind), []).append(values)
    return [
        (
            block,
            f"{kind} (mean of {len(group)})",
            tuple(sum(column) / len(group) for column in zip(*group, strict=True)),
        )
        for (block, kind), group in groups.items()
    ]


def _tasks(manifest: Json) -> Picture | None:
    tasks = section(manifest, "evaluation", "tasks")
    rows = [
        (words.clean(name), float(task["dense"]), float(task["sparse"]), float(task.get("stderr") or 0.0))
        for name, task in tasks.items()
        if task.get("dense") is not None and task.get("sparse") is not None
    ]
    if len(rows) < 2:
        return None
    svg = bars.pairs("tasks", "Zero-shot accuracy per task, dense against sparse", rows)
    return Picture(
        "Zero-shot tasks",
        "Accuracy: ring dense, dot sparse. The bar is two standard errors of the difference to either side.",
        svg,
    )


def _probes(manifest: Json) -> list[Picture | None]:
    probes = section(manifest, "probes")
    return [
        _alpha(section(probes, "alpha")),
        _scores(section(probes, "scores")),
        _spectra(section(probes, "singular_values")),
    ]


def _alpha(found: Json) -> Picture | None:
    rows: list[Row] = []
    for name, value in found.items():
        block = _block_of(name)
        if block is not None and value is not None and math.isfinite(value):
            rows.append((block, kind_of(name, block), (float(value),)))
    if not rows:
        return None
    blocks = sorted({block for block, *_ in rows})
    groups = [[value for place, _, (value,) in rows if place == block] for block in blocks]
    svg = charts.points_per_block(
        "alpha",
        "Hill alpha of every layer",
        [(block, value, f"block {block}, {kind}: {words.number(value)}") for block, kind, (value,) in _thinned(rows)],
        blocks,
        [sum(values) / len(values) for values in groups],
    )
    return Picture(
        "Heavy tails",
        "Hill α of each spectrum (points) and the block's mean (line). A small α marks a well-trained layer.",
        svg,
    )


def _block_of(name: str) -> int | None:
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def _scores(found: Json) -> Picture | None:
    edges, counts, kept = found.get("edges") or [], found.get("counts") or [], found.get("kept")
    if not counts or len(edges) != len(counts) + 1:
        return None
    svg = bars.histogram("scores", "Histogram of the scores", edges, counts, kept)
    return Picture("Scores", "How many weights have which score" + ("; the kept ones are dark." if kept else "."), svg)


def _spectra(found: Json) -> Picture | None:
    chosen = dict(list(found.items())[:6])
    series = {_spectrum_name(name): list(values) for name, values in chosen.items() if finite(values or [])}
    if not series:
        return None
    svg = charts.lines("spectra", "Singular values by rank", series, write=words.number, xlabel="rank")
    more = f" The first {len(chosen)} of {len(found)} layers." if len(found) > len(chosen) else ""
    return Picture("Singular values", "Each layer's singular values, largest first." + more, svg)


def _spectrum_name(name: str) -> str:
    block = _block_of(name)
    kind = kind_of(name, block)
    return (f"{block} " if block is not None else "") + short_names([kind, "x." + kind])[kind].rpartition(".")[2]


def _stages(run: Json) -> Picture | None:
    stages: dict[str, tuple[float, float | None]] = {}
    for stage in run.get("stages") or []:
        seconds, peak = stages.get(name := words.clean(stage.get("name", "?")), (0.0, None))
        peaks = [p for p in (peak, stage.get("peak_mb")) if p is not None]
        stages[name] = (seconds + float(stage.get("seconds") or 0.0), max(peaks, default=None))
    if not stages:
        return None
    total = sum(seconds for seconds, _ in stages.values())
    rows = _longest(stages)
    columns: list[tuple[str, Sequence[float | None], Callable[[float], str]]] = [
        ("time", [seconds for seconds, _ in rows.values()], words.seconds)
    ]
    if any(peak is not None for _, peak in rows.values()):
        columns.append(("peak memory", [peak for _, peak in rows.values()], lambda mb: words.size(mb * 2**20)))
    svg = bars.bars("stages", "Time and peak memory of every stage", list(rows), columns)
    return Picture(
        "Time and memory", f"{words.seconds(total)} in all. Memory: the most held so far, by the end of the stage.", svg
    )


def _longest(stages: dict[str, tuple[float, float | None]]) -> dict[str, tuple[float, float | None]]:
    if len(stages) <= _MOST_BARS:
        return stages
    ranked = sorted(stages, key=lambda name: -stages[name][0])
    rest = [stages[name] for name in ranked[_MOST_BARS - 1 :]]
    kept = {name: value for name, value in stages.items() if name in ranked[: _MOST_BARS - 1]}
    peaks = [peak for _, peak in rest if peak is not None]
    return kept | {f"{len(rest)} others": (sum(seconds for seconds, _ in rest), max(peaks, default=None))}

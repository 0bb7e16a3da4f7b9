"""The pictures of a sweep: the losses of all runs, and how the result depends on the learning rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lowdim.report.draw import words
from lowdim.report.draw.axes import dots, value_axis
from lowdim.report.draw.charts import name_lines
from lowdim.report.draw.palette import colour, ramp
from lowdim.report.draw.svg import Tips, draw
from lowdim.report.draw.tracks import Track, shades, tracks
from lowdim.report.pretrain.curves import Points
from lowdim.report.pruning.figures import Picture
from lowdim.report.sweep.found import best, better, losses, measure, rate_axis, values_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Json = Mapping[str, Any]
_TONES = {"diverged": "orange", "failed": "orange"}


class Sensitivity(NamedTuple):
    """Settings over the learning rate.

    Attributes:
        name: of the settings beside the rate.
        points: rate, mean and spread, in rising order of the rate.
        lost: rates of which no run finished.
        best: the rate with the best mean; None where nobody knows which way is better, or nothing finished.
    """

    name: str
    points: list[tuple[float, float, float | None]]
    lost: list[float]
    best: float | None

    @property
    def edge(self) -> str:
        """Which end of the grid the best rate is, "lowest" or "highest", so that a better one may lie beyond; or ""."""
        rates = [rate for rate, *_ in self.points] + self.lost
        ends = {max(rates): "highest", min(rates): "lowest"} if len(rates) > 1 else {}
        return "" if self.best is None else ends.get(self.best, "")


def pictures(held: Json, out: Path) -> list[Picture]:
    """Return the charts for which the runs left something."""
    found = [_curves(held, out, side) for side in ("validation", "training")]
    found.append(_rates(held))
    return [picture for picture in found if picture is not None]


def sensitivities(held: Json) -> list[Sensitivity]:
    """Return the settings whose grid has several learning rates."""
    axis, name = rate_axis(held), measure(held)
    if axis is None or name is None:
        return []
    groups: dict[str, list[Json]] = {}
    for row in held["table"]:
        rate = row["axes"].get(axis)
        if isinstance(rate, int | float) and rate > 0:  # the scale is logarithmic
            groups.setdefault(values_of({k: v for k, v in row["axes"].items() if k != axis}), []).append(row)
    return [_sensitivity(label, rows, axis, name) for label, rows in groups.items() if len(rows) > 1]


def _sensitivity(label: str, rows: Sequence[Json], axis: str, name: str) -> Sensitivity:
    known = [row for row in rows if row["mean"].get(name) is not None]
    points = sorted((float(row["axes"][axis]), row["mean"][name], row["spread"].get(name)) for row in known)
    top = best(known, name)
    lost = [float(row["axes"][axis]) for row in rows if row not in known]
    return Sensitivity(label, points, lost, None if top is None else float(top.row["axes"][axis]))


def _curves(held: Json, out: Path, side: str) -> Picture | None:
    """Draw the losses of all runs, those of the same settings in one tone."""
    over, unit = {axis for row in held["table"] for axis in row["axes"]}, "step"
    lines: list[tuple[str, Points, str]] = []
    for run in held["runs"]:
        training, validation, counted = losses(out, run)
        points = validation if side == "validation" else training
        if len(points) > 1:
            shared = values_of({key: value for key, value in run["axes"].items() if key in over})
            lines.append((shared, points, run["state"]))
            unit = counted
    if not lines:
        return None
    tones = _tones(lines)
    drawn = [Track(name, points, _TONES.get(state, tones[name]), state != "finished") for name, points, state in lines]
    drawn.sort(key=lambda line: -line.points[-1][1])
    title = f"{side.capitalize()} loss of all runs"
    svg = tracks(f"curves-{side}", f"{title} by {unit}", drawn, xlabel=unit, write=words.tick)
    unfinished = " Dashed: it did not finish; orange: it diverged or failed." if any(x.dashed for x in drawn) else ""
    named = " A name is the values of the grid, in the order of the table." if over else ""
    caption = f"A line per run, in nats; runs of the same settings share a tone.{named}{unfinished}"
    return Picture(title, caption, svg)


def _tones(lines: Sequence[tuple[str, Points, str]]) -> dict[str, str]:
    """Return a blue for each name, the darkest for the lowest end."""
    ends: dict[str, float] = {}
    for name, points, _ in lines:
        ends[name] = min(points[-1][1], ends.get(name, points[-1][1]))
    ordered = sorted(ends, key=lambda name: -ends[name])
    return dict(zip(ordered, shades(len(ordered)), strict=True))


def _rates(held: Json) -> Picture | None:
    found = [each for each in sensitivities(held) if each.points]
    name = measure(held)
    if not found or name is None:
        return None
    svg = _over_rates(f"{words.clean(name)} over the learning rate", words.clean(name), found)
    lost = " A cross: no run of that rate finished." if any(each.lost for each in found) else ""
    ring = " A ring marks the best of each line, orange at the edge of the grid." if better(name) else ""
    caption = f"The mean over seeds, ± their standard deviation.{ring}{lost}"
    return Picture(f"{words.clean(name)} over the learning rate", caption, svg)


def _over_rates(label: str, name: str, found: Sequence[Sensitivity]) -> str:
    tones = [ramp("zeros")[int(shade[-1])] for shade in shades(len(found))]

    def paint(figure: Figure, tips: Tips) -> None:
        from matplotlib.ticker import FuncFormatter, NullLocator

        axes = figure.subplots()
        for each, tone in zip(found, tones, strict=True):
            _line(axes, tips, each, name, tone)
        axes.set_xscale("log")
        rates = sorted({rate for each in found for rate in [*(r for r, *_ in each.points), *each.lost]})
        axes.set_xticks(rates)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: words.tick(value)))
        axes.set_xlabel("learning rate")
        value_axis(axes, words.tick, [mean for each in found for _, mean, _ in each.points])
        top = axes.get_xaxis_transform()
        for each, tone in zip(found, tones, strict=True):
            axes.scatter(each.lost, [0.95] * len(each.lost), s=36, marker="x", color=tone, transform=top)
        if len(found) > 1 and len(found) <= 9:
            ends = {each.name: [mean for _, mean, _ in each.points] for each in found}
            name_lines(axes, ends, dict(zip(ends, tones, strict=True)))

    return draw("rates", label, 260, paint)


def _line(axes: Axes, tips: Tips, each: Sensitivity, name: str, tone: str) -> None:
    xs, ys = [rate for rate, *_ in each.points], [mean for _, mean, _ in each.points]
    axes.plot(xs, ys, color=tone, linewidth=1.6)
    for rate, mean, spread in each.points:
        if spread:
            axes.plot([rate, rate], [mean - spread, mean + spread], color=tone, linewidth=1)
    texts = [
        f"{each.name + ', ' if each.name else ''}learning rate {words.tick(rate)}: {name} {words.number(mean)}"
        + ("" if spread is None else f" ± {words.number(spread)}")
        for rate, mean, spread in each.points
    ]
    dots(axes, tips, xs, ys, texts, color=tone)
    if each.best is not None:
        value = next(mean for rate, mean, _ in each.points if rate == each.best)
        axes.scatter(
            [each.best],
            [value],
            s=70,
            facecolors="none",
            edgecolors=colour("orange" if each.edge else "blue"),
            zorder=4,
        )

"""Pictures of what speed costs: curves over sparsity, and named points of one number against another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lowdim.report.draw import words
from lowdim.report.draw.axes import dots, spans_decades
from lowdim.report.draw.charts import name_lines
from lowdim.report.draw.palette import colour, ramp
from lowdim.report.draw.svg import Tips, draw

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Point = tuple[float, float]


def curves(
    key: str,
    label: str,
    series: Mapping[str, Sequence[Point]],
    *,
    xlabel: str,
    write_x: Callable[[float], str],
    write: Callable[[float], str],
) -> str:
    """Draw one line per series of points (x, y) in rising order of x, each named at its right end, darkest last."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    def paint(figure: Figure, tips: Tips) -> None:
        axes = figure.subplots()
        for index, (name, points) in enumerate(series.items()):
            tone = ramp("zeros")[8 - round(5 * (len(series) - 1 - index) / max(len(series) - 1, 1))]
            xs, ys = [x for x, _ in points], [y for _, y in points]
            axes.plot(xs, ys, color=tone, linewidth=1.6)
            texts = [f"{name}, {write_x(x)}: {write(y)}" for x, y in points]
            dots(axes, tips, xs, ys, texts, color=tone)
        axes.axhline(1, color=colour("muted"), linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        axes.set_ylim(bottom=0)
        axes.set_xlabel(xlabel)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: write_x(value)))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: write(value)))
        name_lines(axes, {name: [y for _, y in points] for name, points in series.items()})

    return draw(key, label, 250, paint)


def named_points(
    key: str,
    label: str,
    points: Sequence[tuple[float, float, str, bool]],
    *,
    xlabel: str,
    write_x: Callable[[float], str],
) -> str:
    """Draw points (x, y, name, dense), each with its name beside it: rings for dense ones, dots for sparse ones."""

    def paint(figure: Figure, tips: Tips) -> None:
        axes = figure.subplots()
        axes.grid(True, axis="both")
        for x, y, name, dense in points:
            mark(axes, tips, x, y, f"{name}: {words.number(y)} at {write_x(x)} {xlabel}", dense)
        dress(axes, [y for _, y, *_ in points], xlabel, write_x)
        write_names(axes, points)

    return draw(key, label, 270, paint)


def mark(axes: Axes, tips: Tips, x: float, y: float, text: str, dense: bool) -> None:
    """Draw a point that says something when pointed at: a ring for a dense model, a dot for a sparse one."""
    look: dict[str, Any] = {"facecolors": colour("paper"), "edgecolors": colour("muted")}
    look = look if dense else {"color": colour("blue")}
    tips.add(axes.scatter([x], [y], s=42, linewidths=2, zorder=3, **look), [text])


def dress(axes: Axes, ys: Sequence[float], xlabel: str, write_x: Callable[[float], str]) -> None:
    """Give axes their scales, ticks and label: a cost from 0 on, and values that may span decades."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    if spans_decades(ys, 5):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=6))
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.margins(0.14)
    axes.set_xlim(left=max(0.0, axes.get_xlim()[0]))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: write_x(value)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: words.tick(value)))
    axes.set_xlabel(xlabel)


def write_names(axes: Axes, points: Sequence[tuple[float, float, str, bool]]) -> None:
    """Write each point's name beside it, above or below by turns where neighbours are near."""
    place = axes.transData.transform
    taken: list[tuple[float, float]] = []
    for x, y, name, _ in sorted(points):
        at = place((x, y))
        offset = 9.0
        while any(abs(at[0] - a) < 90 and abs(at[1] + offset - b) < 12 for a, b in taken):
            offset += 12
        taken.append((at[0], at[1] + offset))
        axes.annotate(
            name,
            (x, y),
            (0, offset),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=11,
            color=colour("ink"),
        )

"""Pictures of few named things: bars per stage, pairs per task, a histogram."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from lowdim.report.draw import words
from lowdim.report.draw.palette import colour, ramp
from lowdim.report.draw.svg import Tips, draw

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def bars(
    key: str,
    label: str,
    names: Sequence[str],
    columns: Sequence[tuple[str, Sequence[float | None], Callable[[float], str]]],
) -> str:
    """Draw a panel of horizontal bars per column (title, values, how to write one), with shared rows."""

    def paint(figure: Figure, tips: Tips) -> None:
        panels = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
        for axes, (title, values, write), tone in zip(panels, columns, ("blue", "orange"), strict=False):
            _panel(axes, tips, names, title, values, write, colour(tone))

    return draw(key, label, 46 + 26 * len(names), paint)


def _panel(
    axes: Axes,
    tips: Tips,
    names: Sequence[str],
    title: str,
    values: Sequence[float | None],
    write: Callable[[float], str],
    tone: str,
) -> None:
    drawn = axes.barh(range(len(names)), [value or 0 for value in values], height=0.56, color=tone)
    for bar, name, value in zip(drawn, names, values, strict=True):
        text = write(value) if value is not None else words.MISSING
        tips.add(bar, [f"{name}: {text}"])
        axes.annotate(
            text, (value or 0, bar.get_y() + bar.get_height() / 2), (6, 0), textcoords="offset points", va="center"
        )
    axes.set_title(title, loc="left", color=colour("muted"))
    axes.set_yticks(range(len(names)), [name if len(name) <= 28 else name[:27] + "…" for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(0, 1.55 * max([value or 0 for value in values] + [1e-9]))
    axes.set_xticks([])
    axes.grid(False)
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(axis="y", labelcolor=colour("ink"))


def pairs(key: str, label: str, rows: Sequence[tuple[str, float, float, float]]) -> str:
    """Draw dense against sparse per row (name, dense, sparse, standard error of the difference)."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    def paint(figure: Figure, tips: Tips) -> None:
        axes = figure.subplots()
        axes.grid(False)
        axes.grid(True, axis="x")
        for place, (name, dense, sparse, error) in enumerate(rows):
            axes.plot(
                [dense, sparse], [place, place], color=colour("line"), linewidth=3, zorder=1, solid_capstyle="butt"
            )
            axes.plot(
                [sparse - 2 * error, sparse + 2 * error],
                [place, place],
                color=ramp("zeros")[2],
                linewidth=7,
                solid_capstyle="butt",
                zorder=2,
            )
            first = axes.scatter(
                [dense], [place], s=40, facecolors=colour("paper"), edgecolors=colour("muted"), linewidths=2, zorder=3
            )
            second = axes.scatter([sparse], [place], s=44, color=colour("blue"), zorder=4)
            tips.add(first, [f"{name}, dense: {words.percent(dense)}"])
            tips.add(second, [f"{name}, sparse: {words.percent(sparse)}"])
        axes.set_yticks(range(len(rows)), [name for name, *_ in rows])
        axes.tick_params(axis="y", labelcolor=colour("ink"))
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.margins(x=0.06)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: words.percent(value)))

    return draw(key, label, 44 + 28 * len(rows), paint)


def histogram(
    key: str, label: str, edges: Sequence[float], counts: Sequence[float], kept: Sequence[float] | None
) -> str:
    """Draw counts between edges, the kept ones filled in."""
    from matplotlib.ticker import FuncFormatter

    def paint(figure: Figure, tips: Tips) -> None:
        axes = figure.subplots()
        if min(edges) > 0 and max(edges) / min(edges) > 100:
            axes.set_xscale("log")
        axes.stairs(counts, edges, fill=True, color=ramp("zeros")[1 if kept else 5])
        if kept:
            axes.stairs(kept, edges, fill=True, color=colour("blue"))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: words.number(value)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: words.number(value)))
        axes.set_xlabel("score")
        axes.set_ylim(bottom=0)

    return draw(key, label, 220, paint)

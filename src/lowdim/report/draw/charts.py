"""Pictures of many numbers: lines, and points over blocks or over each other."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from lowdim.report.draw import words
from lowdim.report.draw.axes import Numbers, as_floats, block_axis, dots, finite, spans_decades, value_axis
from lowdim.report.draw.palette import colour, ramp
from lowdim.report.draw.svg import Tips, draw

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def lines(
    key: str,
    label: str,
    series: Mapping[str, Numbers],
    *,
    write: Callable[[float], str],
    xlabel: str,
    blocks: Sequence[int] | None = None,
) -> str:
    """Draw one line per series over blocks (or over ranks), darkest last, each named at its right end if it has one."""
    longest = max(len(values) for values in series.values())
    places = blocks or range(longest)
    every = [value for values in series.values() for value in values]

    def paint(figure: Figure, tips: Tips) -> None:
        axes = figure.subplots()
        for index, (name, values) in enumerate(series.items()):
            tone = ramp("zeros")[8 - round(5 * (len(series) - 1 - index) / max(len(series) - 1, 1))]
            axes.plot(range(len(values)), as_floats(values), color=tone, linewidth=1.6)
            if blocks:
                texts = [
                    f"{name + ', ' if name else ''}block {p}: {words.MISSING if v is None else write(v)}"
                    for p, v in zip(places, values, strict=False)
                ]
                dots(axes, tips, range(len(texts)), values[: len(texts)], texts, color=tone)
        value_axis(axes, write, every)
        name_lines(axes, series)
        if blocks:
            block_axis(axes, blocks)
        else:
            axes.set_xlabel(xlabel)

    return draw(key, label, 230, paint)


def name_lines(axes: Axes, series: Mapping[str, Numbers], tones: Mapping[str, str] | None = None) -> None:
    """Write each name beside the end of its line, moved apart where two would touch; in its tone if it has one."""
    low, high = axes.get_ylim()
    log = axes.get_yscale() == "log"

    def height(value: float) -> float:
        return math.log(value / low) / math.log(high / low) if log else (value - low) / (high - low)

    ends = sorted((height(finite(values)[-1]), name) for name, values in series.items() if finite(values))
    floor = -1.0
    for place, name in ends:
        floor = max(place, floor + 0.085)
        axes.annotate(
            name,
            (1, floor),
            (6, 0),
            xycoords="axes fraction",
            textcoords="offset points",
            va="center",
            fontsize=11,
            color=(tones or {}).get(name, colour("ink")),
        )


def scatter(
    key: str,
    label: str,
    points: Sequence[tuple[float, float, int, str]],
    *,
    xlabel: str,
    write: Callable[[float], str],
    blocks: Sequence[int],
) -> str:
    """Draw points (x, y, block, text), from the first block in a faint colour to the last in a strong one."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    last = max(len(blocks) - 1, 1)
    rank = {block: index for index, block in enumerate(blocks)}

    def paint(figure: Figure, tips: Tips) -> None:
        axes = figure.subplots()
        tones = [ramp("zeros")[2 + round(6 * rank.get(block, 0) / last)] for _, _, block, _ in points]
        xs, ys, texts = [p[0] for p in points], [p[1] for p in points], [p[3] for p in points]
        axes.grid(True, axis="both")
        if spans_decades(xs):
            axes.set_xscale("log")
        else:
            axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: words.tick(value)))
        dots(axes, tips, xs, ys, texts, color=tones, s=26, linewidths=0.7, edgecolors=colour("paper"))
        axes.margins(0.06)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: write(value)))
        axes.set_xlabel(xlabel)

    return draw(key, label, 250, paint)


def points_per_block(
    key: str, label: str, points: Sequence[tuple[int, float, str]], blocks: Sequence[int], means: Numbers
) -> str:
    """Draw points (block, value, text) under the line of their means per block."""
    place = {block: index for index, block in enumerate(blocks)}

    def paint(figure: Figure, tips: Tips) -> None:
        axes = figure.subplots()
        values = [value for _, value, _ in points]
        dots(
            axes,
            tips,
            [place[b] for b, _, _ in points],
            values,
            [t for *_, t in points],
            color=ramp("zeros")[3],
            s=12,
            linewidths=0,
        )
        axes.plot(range(len(blocks)), as_floats(means), color=colour("blue"), zorder=4)
        value_axis(axes, words.tick, values)
        block_axis(axes, blocks)

    return draw(key, label, 220, paint)

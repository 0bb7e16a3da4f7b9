"""The kinds of picture that the report is made of. What each one shows is decided in ``figures``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lowdim.report import words
from lowdim.report.palette import colour, ramp
from lowdim.report.svg import Tips, draw

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Numbers = Sequence[float | None]
_LOG_FROM = 20.0  # a range wider than this factor is drawn on a logarithmic scale


def finite(values: Numbers) -> list[float]:
    """Return the values that can be drawn."""
    return [value for value in values if value is not None and math.isfinite(value)]


def spans_decades(values: Numbers) -> bool:
    """Tell whether a logarithmic scale suits some values.

    Example:
        >>> spans_decades([0.001, 0.2]), spans_decades([0.4, 0.7]), spans_decades([0.0, 5.0])
        (True, False, False)
    """
    known = finite(values)
    return bool(known) and min(known) > 0 and max(known) / min(known) > _LOG_FROM


def _as_floats(values: Numbers) -> list[float]:
    return [math.nan if value is None or not math.isfinite(value) else value for value in values]


def _block_axis(axes: Axes, blocks: Sequence[int]) -> None:
    """Label the columns of a chart with block numbers, the first and the last among them."""
    count = len(blocks)
    step = max(1, next(s for s in (1, 2, 5, 10, 20, 50, 100, 1000) if count / s <= 10))
    shown = [i for i in range(0, count, step) if count - 1 - i >= step * 0.7] + [count - 1]
    axes.set_xticks(shown, [str(blocks[i]) for i in shown])
    axes.set_xlim(-0.5, count - 0.5)


def _value_axis(axes: Axes, write: Callable[[float], str], values: Numbers, *, zero: bool = False) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    formatter = FuncFormatter(lambda value, _: write(value))
    if not zero and spans_decades(values):
        known = finite(values)
        axes.set_yscale("log")
        axes.set_ylim(min(known) / 1.3, max(known) * 1.3)
        narrow = math.log10(max(known) / min(known)) < 2
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if narrow else (1.0,), numticks=6))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 2.5, 5, 10]))
        if zero:
            axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(formatter)


def _dots(axes: Axes, tips: Tips, x: Sequence[float], y: Numbers, texts: Sequence[str], **style: Any) -> None:
    """Draw the points that are finite, each with its text."""
    points = [(a, b, text) for a, b, text in zip(x, _as_floats(y), texts, strict=True) if math.isfinite(b)]
    if points:
        xs, ys, kept = zip(*points, strict=True)
        look: dict[str, Any] = {"s": 18, "linewidths": 1, "edgecolors": colour("paper"), "zorder": 3}
        tips.add(axes.scatter(xs, ys, **(look | style)), kept)


def heatmap(
    key: str,
    label: str,
    rows: Sequence[str],
    blocks: Sequence[int],
    table: Sequence[Numbers],
    *,
    per_block: Numbers,
    write: Callable[[float], str],
    hue: str,
    target: float | None = None,
) -> str:
    """Draw a grid of blocks by kinds of layer, under the value of each block as a whole."""
    cell = 20 if len(rows) <= 16 else 14

    def paint(figure: Figure, tips: Tips) -> None:
        above, grid = figure.subplots(
            2, 1, sharex=True, height_ratios=[72, cell * len(rows)], gridspec_kw={"hspace": 0.02}
        )
        _line_per_block(above, tips, blocks, per_block, write, hue, target)
        above.tick_params(labelbottom=False, bottom=False)
        _cells(figure, grid, tips, rows, blocks, table, write, hue)

    return draw(key, label, 72 + cell * len(rows) + 84, paint)


def _line_per_block(
    axes: Axes,
    tips: Tips,
    blocks: Sequence[int],
    values: Numbers,
    write: Callable[[float], str],
    hue: str,
    target: float | None,
) -> None:
    """Draw the line above a heatmap."""
    tone = colour("blue" if hue == "zeros" else "orange")
    if target is not None:
        axes.axhline(target, color=colour("faint"), linewidth=1, linestyle=(0, (3, 3)), zorder=1)
    axes.plot(range(len(blocks)), _as_floats(values), color=tone, linewidth=1.6)
    texts = [
        f"block {block}: {write(v)}" if v is not None else "" for block, v in zip(blocks, values, strict=True)
    ]
    _dots(axes, tips, range(len(blocks)), values, texts, color=tone, s=22 if len(blocks) <= 40 else 10)
    axes.margins(y=0.2)
    _value_axis(axes, write, [*values, target] if target is not None else values)


def _cells(
    figure: Figure,
    axes: Axes,
    tips: Tips,
    rows: Sequence[str],
    blocks: Sequence[int],
    table: Sequence[Numbers],
    write: Callable[[float], str],
    hue: str,
) -> None:
    import numpy as np
    from matplotlib.colors import ListedColormap, LogNorm, Normalize
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    values = np.ma.masked_invalid(np.array([_as_floats(row) for row in table], dtype=float))
    known = finite(values.compressed().tolist())
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    if high - low < 1e-9 * max(abs(high), 1e-30):
        low, high = low - 0.05 * max(abs(low), 0.1), high + 0.05 * max(abs(high), 0.1)
    scale = LogNorm(low, high) if spans_decades(known) else Normalize(low, high)
    gap = 1.0 if len(blocks) <= 64 else 0.4
    mesh = axes.pcolormesh(
        np.arange(len(blocks) + 1) - 0.5,
        np.arange(len(rows) + 1) - 0.5,
        values,
        cmap=ListedColormap(ramp(hue)),
        norm=scale,
        edgecolors=colour("paper"),
        linewidth=gap,
    )
    tips.add(mesh, _cell_texts(rows, blocks, table, write))
    axes.invert_yaxis()
    axes.set_yticks(range(len(rows)), [row if len(row) <= 24 else "…" + row[-23:] for row in rows])
    axes.grid(False)
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(bottom=False)
    axes.set_xlabel("block")
    _block_axis(axes, blocks)
    bar = figure.colorbar(
        mesh, ax=axes, orientation="horizontal", fraction=0.05, aspect=32, shrink=0.5, pad=0.02
    )
    bar.outline.set_visible(False)
    bar.ax.xaxis.set_major_locator(FixedLocator([low, high]))
    bar.ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: write(value)))
    bar.ax.xaxis.set_minor_locator(NullLocator())
    bar.ax.tick_params(length=0)


def _cell_texts(
    rows: Sequence[str], blocks: Sequence[int], table: Sequence[Numbers], write: Callable[[float], str]
) -> list[str]:
    return [
        f"block {block}, {row}: {write(value) if value is not None else 'no such layer'}"
        for row, line in zip(rows, table, strict=True)
        for block, value in zip(blocks, line, strict=True)
    ]


def lines(
    key: str,
    label: str,
    series: Mapping[str, Numbers],
    *,
    write: Callable[[float], str],
    xlabel: str,
    blocks: Sequence[int] | None = None,
) -> str:
    """Draw one line per series over blocks (or over ranks), each named at its right end, darkest last."""
    longest = max(len(values) for values in series.values())
    places = blocks or range(longest)
    every = [value for values in series.values() for value in values]

    def paint(figure: Figure, tips: Tips) -> None:
        axes = figure.subplots()
        for index, (name, values) in enumerate(series.items()):
            tone = ramp("zeros")[8 - round(5 * (len(series) - 1 - index) / max(len(series) - 1, 1))]
            axes.plot(range(len(values)), _as_floats(values), color=tone, linewidth=1.6)
            texts = [f"{name}, {xlabel} {p}: {words.number(v)}" for p, v in zip(places, values, strict=False)]
            if blocks:
                texts = [f"{name}, block {p}: {write(v or 0)}" for p, v in zip(places, values, strict=False)]
                _dots(axes, tips, range(len(texts)), values[: len(texts)], texts, color=tone, s=14)
        _value_axis(axes, write, every)
        _name_lines(axes, series)
        axes.set_xlabel(xlabel)
        if blocks:
            _block_axis(axes, blocks)

    return draw(key, label, 230, paint)


def _name_lines(axes: Axes, series: Mapping[str, Numbers]) -> None:
    """Write each name beside the end of its line, moved apart where two would touch."""
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
    """Draw points (x, y, block, text); a darker point is a deeper block."""
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
        _dots(axes, tips, xs, ys, texts, color=tones, s=30)
        axes.margins(0.06)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: write(value)))
        axes.set_xlabel(xlabel)

    return draw(key, label, 250, paint)


def dots(
    key: str, label: str, points: Sequence[tuple[int, float, str]], blocks: Sequence[int], means: Numbers
) -> str:
    """Draw points (block, value, text) under the line of their means per block."""
    place = {block: index for index, block in enumerate(blocks)}

    def paint(figure: Figure, tips: Tips) -> None:
        axes = figure.subplots()
        values = [value for _, value, _ in points]
        _dots(
            axes,
            tips,
            [place[b] for b, _, _ in points],
            values,
            [t for *_, t in points],
            color=ramp("zeros")[3],
        )
        axes.plot(range(len(blocks)), _as_floats(means), color=colour("blue"), zorder=2)
        _value_axis(axes, words.tick, values)
        axes.set_xlabel("block")
        _block_axis(axes, blocks)

    return draw(key, label, 220, paint)

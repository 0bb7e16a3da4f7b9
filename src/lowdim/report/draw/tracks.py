"""Pictures of what changes while a network trains: one named line per network or layer over steps or epochs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowdim.report.draw.axes import dots, value_axis
from lowdim.report.draw.charts import name_lines
from lowdim.report.draw.palette import colour, ramp
from lowdim.report.draw.svg import Tips, draw

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_NAMES, _MOST_DOTS = 9, 60


@dataclass(frozen=True)
class Track:
    """A line: its name, its points (x, y) in rising order of x, a colour of the palette, and whether it is dashed."""

    name: str
    points: Sequence[tuple[float, float]]
    tone: str
    dashed: bool = False


def shades(count: int) -> list[str]:
    """Return that many names of blues, the last one the darkest.

    Example:
        >>> shades(3), shades(1)
        (['zeros3', 'zeros6', 'zeros8'], ['zeros8'])
    """
    return [f"zeros{8 - round(5 * (count - 1 - i) / max(count - 1, 1))}" for i in range(count)]


def tracks(
    key: str, label: str, lines: Sequence[Track], *, xlabel: str, write: Callable[[float], str], steps: bool = False
) -> str:
    """Draw the lines, the most important last, each named at its right end if names are few; lines may share one.

    With ``steps`` a value holds until the next point, instead of changing along a straight line.
    """

    def paint(figure: Figure, tips: Tips) -> None:
        from matplotlib.ticker import FuncFormatter, MaxNLocator

        axes = figure.subplots()
        for line in lines:
            _draw(axes, tips, line, xlabel, write, steps)
        value_axis(axes, write, [y for line in lines for _, y in line.points])
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.set_xlabel(xlabel)
        ends = {line.name: [y for _, y in line.points] for line in lines}
        if len(ends) <= _MOST_NAMES:
            name_lines(axes, ends, {line.name: _tone(line) for line in lines})

    return draw(key, label, 250, paint)


def _tone(line: Track) -> str:
    return ramp("zeros")[int(line.tone[-1])] if line.tone.startswith("zeros") else colour(line.tone)


def _draw(axes: Axes, tips: Tips, line: Track, xlabel: str, write: Callable[[float], str], steps: bool) -> None:
    xs, ys = [x for x, _ in line.points], [y for _, y in line.points]
    tone = _tone(line)
    axes.plot(
        xs,
        ys,
        color=tone,
        linewidth=1.6,
        linestyle=(0, (4, 3)) if line.dashed else "-",
        drawstyle="steps-post" if steps else "default",
    )
    every = max(1, len(xs) // _MOST_DOTS)
    shown = list(line.points)[::-every][::-1]  # the last point always has its text
    texts = [f"{line.name}, {xlabel} {x:,.0f}: {write(y)}" for x, y in shown]
    dots(axes, tips, [x for x, _ in shown], [y for _, y in shown], texts, color=tone, s=12)

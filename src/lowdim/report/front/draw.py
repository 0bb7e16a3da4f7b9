"""A picture of a front: points of perplexity against a cost, those that no other beats joined by a line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lowdim.report.draw import words
from lowdim.report.draw.axes import spans_decades
from lowdim.report.draw.palette import colour
from lowdim.report.draw.svg import Tips, draw
from lowdim.report.pruning.trade import write_names

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Mark:
    """A form in the picture.

    Attributes:
        x: its cost.
        y: its perplexity.
        name: of the form.
        dense: drawn as a ring; others as a dot.
        kept: whether it is on the front, and so named and joined.
    """

    x: float
    y: float
    name: str
    dense: bool
    kept: bool


def staircase(key: str, label: str, marks: Sequence[Mark], xlabel: str, write_x: Callable[[float], str]) -> str:
    """Draw the marks and the front through the kept ones, which alone are named: the rest say so when pointed at."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    def paint(figure: Figure, tips: Tips) -> None:
        axes = figure.subplots()
        axes.grid(True, axis="both")
        kept = sorted((mark.x, mark.y) for mark in marks if mark.kept)
        xs, ys = [x for x, _ in kept], [y for _, y in kept]
        axes.plot(xs, ys, color=colour("line"), drawstyle="steps-post", zorder=2)
        for mark in marks:
            look: dict[str, Any] = {"facecolors": colour("paper"), "edgecolors": colour("muted")}
            look = look if mark.dense else {"color": colour("blue")}
            text = f"{mark.name}: {words.number(mark.y)} at {write_x(mark.x)} {xlabel}"
            tips.add(axes.scatter([mark.x], [mark.y], s=42, linewidths=2, zorder=3, **look), [text])
        if spans_decades([mark.y for mark in marks], 5):
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=6))
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.margins(0.14)
        axes.set_xlim(left=max(0.0, axes.get_xlim()[0]))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: write_x(value)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: words.tick(value)))
        axes.set_xlabel(xlabel)
        write_names(axes, [(mark.x, mark.y, mark.name, mark.dense) for mark in marks if mark.kept])

    return draw(key, label, 290, paint)

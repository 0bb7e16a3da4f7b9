"""A picture of a front: points of perplexity against a cost, those that no other beats joined by a line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowdim.report.draw import words
from lowdim.report.draw.palette import colour
from lowdim.report.draw.svg import Tips, draw
from lowdim.report.pruning.trade import dress, mark, write_names

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

    def paint(figure: Figure, tips: Tips) -> None:
        axes = figure.subplots()
        axes.grid(True, axis="both")
        kept = sorted((each.x, each.y) for each in marks if each.kept)
        xs, ys = [x for x, _ in kept], [y for _, y in kept]
        axes.plot(xs, ys, color=colour("line"), drawstyle="steps-post", zorder=2)
        for each in marks:
            text = f"{each.name}: {words.number(each.y)} at {write_x(each.x)} {xlabel}"
            mark(axes, tips, each.x, each.y, text, each.dense)
        dress(axes, [each.y for each in marks], xlabel, write_x)
        write_names(axes, [(each.x, each.y, each.name, each.dense) for each in marks if each.kept])

    return draw(key, label, 290, paint)

"""What the charts share: numbers that can be drawn, axes of blocks and values, points with texts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from lowdim.report.draw.palette import colour
from lowdim.report.draw.svg import Tips

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Numbers = Sequence[float | None]
_LOG_FROM = 20.0  # a range wider than this factor is drawn on a logarithmic scale


def finite(values: Numbers) -> list[float]:
    """Return the values that can be drawn."""
    return [value for value in values if value is not None and math.isfinite(value)]


def spans_decades(values: Numbers, factor: float = _LOG_FROM) -> bool:
    """Tell whether a logarithmic scale suits some values.

    Example:
        >>> spans_decades([0.001, 0.2]), spans_decades([0.4, 0.7]), spans_decades([0.0, 5.0])
        (True, False, False)
    """
    known = finite(values)
    return bool(known) and min(known) > 0 and max(known) / min(known) > factor


def as_floats(values: Numbers) -> list[float]:
    """Return the values with NaN for those that cannot be drawn."""
    return [math.nan if value is None or not math.isfinite(value) else value for value in values]


def block_axis(axes: Axes, blocks: Sequence[int]) -> None:
    """Label the columns of a chart with block numbers, the first and the last among them."""
    count = len(blocks)
    step = max(1, next(s for s in (1, 2, 5, 10, 20, 50, 100, 1000) if count / s <= 10))
    shown = [i for i in range(0, count, step) if count - 1 - i >= step * 0.7] + [count - 1]
    axes.set_xticks(shown, [str(blocks[i]) for i in shown])
    axes.annotate(
        "block",
        (0, 0),
        (-4, -7),
        xycoords="axes fraction",
        textcoords="offset points",
        ha="right",
        va="top",
        color=colour("muted"),
    )
    axes.set_xlim(-0.5, count - 0.5)


def value_axis(axes: Axes, write: Callable[[float], str], values: Numbers) -> None:
    """Choose the scale and the ticks of the values, and write them."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    formatter = FuncFormatter(lambda value, _: write(value))
    known = finite(values)
    if known and write(min(known)) == write(max(known)):  # ticks between would all say the same
        axes.set_yticks([known[0]])
        axes.set_ylim(known[0] - 1, known[0] + 1)
    elif spans_decades(values):
        axes.set_yscale("log")
        axes.set_ylim(min(known) / 1.3, max(known) * 1.3)
        narrow = math.log10(max(known) / min(known)) < 2
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if narrow else (1.0,), numticks=6))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(formatter)


def dots(axes: Axes, tips: Tips, x: Sequence[float], y: Numbers, texts: Sequence[str], **style: Any) -> None:
    """Draw the points that are finite, each with its text; many are drawn smaller and without a rim."""
    points = [(a, b, text) for a, b, text in zip(x, as_floats(y), texts, strict=True) if math.isfinite(b)]
    if points:
        xs, ys, kept = zip(*points, strict=True)
        rim = len(kept) <= 40
        look: dict[str, Any] = {"s": 20 if rim else 6, "linewidths": int(rim), "zorder": 3}
        look |= {"edgecolors": colour("paper")} if rim else {}
        tips.add(axes.scatter(xs, ys, **(look | style)), kept)

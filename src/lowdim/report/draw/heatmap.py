"""A grid of decoder blocks by kinds of layer, under the value of each block as a whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from lowdim.report.draw.axes import Numbers, as_floats, block_axis, dots, finite, spans_decades, value_axis
from lowdim.report.draw.palette import colour, ramp
from lowdim.report.draw.svg import Tips, draw

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_TAIL = 0.02  # share of cells at either end that may lie beyond the scale: one odd layer must not flatten the rest
_LOG_COLOURS_FROM = 300.0  # nine colours tell shares of a range apart, and only few decades


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
    missing: str = "no such layer",
) -> str:
    """Draw a grid of blocks by kinds of layer, under the value of each block as a whole; ``missing`` says why not."""
    cell = 20 if len(rows) <= 16 else 14

    def paint(figure: Figure, tips: Tips) -> None:
        above, grid = figure.subplots(
            2, 1, sharex=True, height_ratios=[72, cell * len(rows)], gridspec_kw={"hspace": 0.02}
        )
        _line_per_block(above, tips, blocks, per_block, write, hue, target)
        above.tick_params(labelbottom=False, bottom=False)
        _cells(grid, tips, rows, blocks, table, write, hue, missing)

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
    axes.plot(range(len(blocks)), as_floats(values), color=tone, linewidth=1.6)
    texts = [f"block {block}: {write(v)}" if v is not None else "" for block, v in zip(blocks, values, strict=True)]
    dots(axes, tips, range(len(blocks)), values, texts, color=tone)
    axes.margins(y=0.2)
    value_axis(axes, write, [*values, target] if target is not None else values)


def _cells(
    axes: Axes,
    tips: Tips,
    rows: Sequence[str],
    blocks: Sequence[int],
    table: Sequence[Numbers],
    write: Callable[[float], str],
    hue: str,
    missing: str,
) -> None:
    import numpy as np
    from matplotlib.colors import ListedColormap, LogNorm, Normalize

    values = np.ma.masked_invalid(np.array([as_floats(row) for row in table], dtype=float))
    known = finite(values.compressed().tolist())
    low, high = np.quantile(known, (_TAIL, 1 - _TAIL)).tolist() if known else (0.0, 1.0)
    same = write(low) == write(high)
    if same:  # one colour for all, from the middle of the ramp
        low, high = low - 1, high + 1
    scale = LogNorm(low, high) if spans_decades([low, high], _LOG_COLOURS_FROM) else Normalize(low, high)
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
    tips.add(mesh, _cell_texts(rows, blocks, table, write, missing))
    axes.invert_yaxis()
    axes.set_yticks(range(len(rows)), [row if len(row) <= 24 else "…" + row[-23:] for row in rows])
    axes.grid(False)
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(bottom=False)
    block_axis(axes, blocks)
    if not same:
        ends = (("≤ " if min(known) < low else "") + write(low), ("≥ " if max(known) > high else "") + write(high))
        _legend(axes, len(rows), hue, *ends)


def _legend(axes: Axes, rows: int, hue: str, low: str, high: str) -> None:
    """Draw the ramp below the grid, as high as a third of a row, with its ends written beside it."""
    strip = axes.inset_axes((0.3, -1.75 / rows, 0.4, 0.36 / rows))
    strip.axis("off")
    for step, tone in enumerate(ramp(hue)):
        strip.axvspan(step, step + 1, color=tone, linewidth=0)
    for place, text, side in ((0, low, "right"), (1, high, "left")):
        strip.annotate(
            text,
            (place, 0.5),
            (-6 if side == "right" else 6, 0),
            xycoords="axes fraction",
            textcoords="offset points",
            ha=side,
            va="center_baseline",
            color=colour("muted"),
        )
    strip.set_xlim(0, len(ramp(hue)))


def _cell_texts(
    rows: Sequence[str], blocks: Sequence[int], table: Sequence[Numbers], write: Callable[[float], str], missing: str
) -> list[str]:
    return [
        f"block {block}, {row}: {write(value) if value is not None else missing}"
        for row, line in zip(rows, table, strict=True)
        for block, value in zip(blocks, line, strict=True)
    ]

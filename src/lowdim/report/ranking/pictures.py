"""The pictures of a ranking: when the samples of each class were learnt, and how clearly they are judged."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lowdim.data.select.ranks import Ranks
from lowdim.report.draw import words
from lowdim.report.draw.palette import colour, ramp
from lowdim.report.draw.svg import Tips, draw
from lowdim.report.pruning.figures import Picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BINS, _LEAST = 44, 0.07  # percent: less is as good as nothing left
_MOST = 200


def pictures(ranks: Ranks) -> list[Picture]:
    """Return the pictures for which there are numbers."""
    found = [_learnt(ranks)] if int(ranks.rank.max()) <= _MOST else []  # of epochs; scores make a rank of each sample
    if "margin" in ranks.values:
        found.append(_margins(ranks))
    return found


def _learnt(ranks: Ranks) -> Picture:
    """Draw what is left of every class behind each rank."""
    last = int(ranks.rank.max())
    left = []
    for number in range(len(ranks.classes)):
        mine = ranks.rank[ranks.label == number]
        counts = torch.bincount(mine, minlength=last + 1).double()
        left.append(((1 - counts.cumsum(0) / max(len(mine), 1)) * 100).clamp_min(0)[:last].tolist())
    whole = torch.bincount(ranks.rank, minlength=last + 1).double()
    total = ((1 - whole.cumsum(0) / len(ranks)) * 100)[:last].tolist()
    final = [row[-1] for row in left]
    slowest = max(range(len(left)), key=lambda number: final[number])

    def paint(figure: Figure, tips: Tips) -> None:
        axes = figure.subplots()
        for number, row in enumerate(left):
            tone = colour("orange") if number == slowest and len(left) > 1 else ramp("zeros")[3]
            axes.plot(
                range(last),
                [max(value, _LEAST / 2) for value in row],
                color=tone,
                linewidth=1.4 if number == slowest else 1,
            )
        axes.plot(range(last), [max(value, _LEAST / 2) for value in total], color=colour("ink"), linewidth=2)
        points = axes.scatter(
            range(1, last), [max(value, _LEAST / 2) for value in total[1:]], s=16, color=colour("ink"), zorder=3
        )
        tips.add(points, [f"after epoch {epoch}: {value:.3g}% left" for epoch, value in enumerate(total[1:], start=1)])
        axes.set_yscale("log")
        axes.set_ylim(_LEAST, 130)
        axes.set_yticks([0.1, 1, 10, 100], ["0.1%", "1%", "10%", "100%"])
        axes.minorticks_off()
        axes.set_xlim(0, last - 1 or 1)
        _whole_ticks(axes)
        axes.set_xlabel("epoch")

    name = words.clean(ranks.classes[slowest])
    caption = f"Share of each class not ranked yet; bold: of all samples. Orange: {name}, of which most is left."
    return Picture("When samples were learnt", caption, draw("learnt", "Samples not ranked yet, by epoch", 250, paint))


def _whole_ticks(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))


def _margins(ranks: Ranks) -> Picture:
    margin = ranks.values["margin"].double()
    low, high = float(margin.min()), float(margin.max())
    width = max(high - low, 1e-6) / _BINS
    start = -width * (-low // width + 1) if low < 0 else low  # an edge at 0: no bar is judged both ways
    places = ((margin - start) / width).long()
    counts = torch.bincount(places).tolist()
    edges = [start + width * place for place in range(len(counts))]

    def paint(figure: Figure, tips: Tips) -> None:
        axes = figure.subplots()
        tones = [colour("orange") if edge + width / 2 < 0 else ramp("zeros")[4] for edge in edges]
        drawn = axes.bar(edges, counts, width=width * 0.9, align="edge", color=tones)
        for bar, edge, count in zip(drawn, edges, counts, strict=True):
            tips.add(bar, [f"{words.number(edge)} to {words.number(edge + width)}: {count:,} samples"])
        axes.set_yscale("symlog", linthresh=1, linscale=0.4)
        most = max(counts)
        ticks = [value for value in (1, 10, 100, 1_000, 10_000, 100_000) if value <= most] or [1]
        axes.set_yticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.set_ylim(0, most * 1.6)
        axes.set_xlabel("margin, nats")

    caption = (
        "log p of a sample's class less that of the likeliest other, when half of the samples were ranked. Orange: "
        "misjudged. A bias lets the fall to the left slow down, or rise again."
    )
    return Picture("How clearly samples are judged", caption, draw("margins", "Samples by margin", 250, paint))

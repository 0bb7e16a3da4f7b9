"""Speed over sparsity, a line per dtype: one layer of 4096x4096 at batch 1, measured and drawn.

Results go into the folder of this processor; the page shows those of every processor that has some.

python benchmarks/curves.py --docs docs/runtime.md
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from matplotlib.figure import Figure
from pages import by_processor, fill, heading, results

import lowdim
from lowdim.core.machine import machine
from lowdim.core.native import library
from lowdim.core.pattern.nm import NM
from lowdim.infer.bench import layers
from lowdim.infer.bench.bandwidth import read_bandwidth
from lowdim.infer.bench.result import LayerTime
from lowdim.infer.bench.timing import threads

SPARSITIES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
ALIKE = 0.1
"""Share by which the dense kernels of two measurements may differ, for both to be of one machine."""
PICTURE = "assets/runtime-curves-{}.svg"
DTYPES = {"fp32": "#8b949e", "bf16": "#3f7fc1", "int8": "#c2702d", "int4": "#1a7a55"}


def measure(count: int, level: str) -> dict[str, Any]:
    """Return every dtype's microseconds at every sparsity, 0 being its dense kernel, on some threads at a level.

    Scattered zeros lie with a mask; where 16 columns keep eight or four weights, as eight or four values.
    """
    weight = torch.randn(4096, 4096, generator=torch.Generator().manual_seed(0)).bfloat16()
    library().use(level)
    with threads(count):
        bandwidth = read_bandwidth()
        rows = form("packed", weight, SPARSITIES, bandwidth)
        found = {f"{r.engine} {r.dtype} {r.sparsity:g}": r for r in rows}
        few: dict[str, Any] = {}
        for kept in (8, 4):
            mask = NM(kept, 16).mask(weight.float().abs(), weight.numel() * kept // 16)
            name = f"{kept}:16"
            own = alike(name, mask * weight, {d: found[f"lowdim {d} 0"].microseconds for d in DTYPES}, bandwidth)
            few[name] = {
                d: {"dense": own[d, False].microseconds, name: own[d, True].microseconds, "kernel": own[d, True].kernel}
                for d in DTYPES
            }
    return {
        "threads": count,
        "level": level,
        "read_bandwidth_gb_s": round(bandwidth / 1e9, 2),
        "torch": {d: found[f"torch {d} 0"].microseconds for d in ("fp32", "bf16")},
        **few,
        "lowdim": {d: {f"{s:g}": found[f"lowdim {d} {s:g}"].microseconds for s in (0, *SPARSITIES)} for d in DTYPES},
    }


def form(name: str, weight: torch.Tensor, shares: tuple[float, ...], bandwidth: float) -> list[LayerTime]:
    """Time a layer in one form, not in that which would be chosen here."""
    os.environ["LOWDIM_FORM"] = name
    return layers.measure(layers.Product(("4096x4096",), 1, weight), DTYPES, shares, bandwidth)


def alike(
    name: str, weight: torch.Tensor, dense: dict[str, float], bandwidth: float
) -> dict[tuple[str, bool], LayerTime]:
    """Time a form until its dense kernels take what they took before, five times at most: others may take bandwidth."""
    tries = []
    for _ in range(5):
        rows = form(name, weight, (), bandwidth)
        own = {(r.dtype, r.sparsity > 0): r for r in rows if r.engine == "lowdim"}
        off = max(abs(own[d, False].microseconds / us - 1) for d, us in dense.items())
        tries.append((off, own))
        if off < ALIKE:
            break
    return min(tries, key=lambda each: each[0])[1]


def draw(found: list[dict[str, Any]], path: Path) -> None:
    """Draw speed-ups over torch bf16, a panel per number of threads; legible on a light and on a dark page."""
    style = {"svg.fonttype": "none", "svg.hashsalt": "curves", "font.size": 10, "text.color": "#8b949e"}
    style |= {
        "axes.labelcolor": "#8b949e",
        "axes.edgecolor": "#8b949e",
        "xtick.color": "#8b949e",
        "ytick.color": "#8b949e",
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        for axes, one in zip(figure.subplots(1, len(found), squeeze=False)[0], found, strict=True):
            for dtype, tone in DTYPES.items():
                points = {float(share): one["torch"]["bf16"] / us for share, us in one["lowdim"][dtype].items()}
                axes.plot(
                    [100 * x for x in points],
                    points.values(),
                    color=tone,
                    marker="o",
                    markersize=3,
                    label=dtype,
                )
                axes.axhline(points[0.0], color=tone, linewidth=0.7, linestyle=":")
            axes.set_title(f"threads: {one['threads']}", fontsize=10)
            axes.set_xlabel("zeros, %")
            axes.set_ylim(bottom=0)
            axes.grid(alpha=0.25)
            axes.set_facecolor("none")
            axes.spines[["top", "right"]].set_visible(False)
        figure.axes[0].set_ylabel("times as fast as torch bf16")
        handles, names = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, names, frameon=False, loc="outside right upper")
        figure.patch.set_alpha(0)
        figure.savefig(path, format="svg", metadata={"Date": None})


def table(found: list[dict[str, Any]]) -> str:
    """Return microseconds as Markdown, and in brackets the speed over the dense kernel of the dtype."""
    lines = []
    for one in found:
        shown = ("0", "0.3", "0.5", "0.6", "0.7", "0.8", "0.9")
        level = f"level {one['level']}, " if "level" in one else ""
        lines += [f"{level}threads: {one['threads']}, memory read at {one['read_bandwidth_gb_s']} GB/s, torch bf16 "]
        lines[-1] += f"{one['torch']['bf16']:.0f} µs, torch fp32 {one['torch']['fp32']:.0f} µs"
        fewer = [name for name in ("8:16", "4:16") if name in one]
        heads = ["µs", "dense", *(f"{float(s):.0%}" for s in shown[1:]), *fewer]
        lines += [
            "",
            f"| {' | '.join(heads)} |",
            "|---" * len(heads) + "|",
        ]
        for dtype, times in one["lowdim"].items():
            cells = [f"{times[s]:.0f}" + (f" ({times['0'] / times[s]:.2f}x)" if s != "0" else "") for s in shown]
            for name in fewer:
                few = one[name][dtype]
                has = few["kernel"].startswith(name)
                cells.append(f"{few[name]:.0f} ({few['dense'] / few[name]:.2f}x)" if has else "")
            lines.append(f"| {dtype} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Measure, or read what was measured; draw and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", type=Path, help="page that tables and pictures go into; these into its assets/")
    parser.add_argument("--draw", action="store_true", help="measure nothing, draw what was measured")
    given = parser.parse_args()
    if not given.draw:
        info = lowdim.runtime_info()
        about = machine() | {"level": info.level, "build": info.build, "torch": torch.__version__}
        counts = sorted({1, os.cpu_count() or 1})
        levels = [level for level in info.levels if level != "portable"]
        found = {"machine": about, "curves": [measure(count, level) for level in levels for count in counts]}
        results("curves").write_text(json.dumps(found, indent=1) + "\n")
    parts = []
    for folder, found in by_processor("curves").items():
        picture, text = PICTURE.format(folder), f"{heading(folder, found['machine'])}\n\n{table(found['curves'])}"
        print(text)
        parts.append(f"![Speed over sparsity, a line per dtype]({picture})\n\n{text}")
        if given.docs:
            best = found["machine"]["level"]
            drawn = [one for one in found["curves"] if one.get("level", best) == best]
            draw(drawn, given.docs.parent / picture)
    if given.docs:
        fill(given.docs, "curves", "\n".join(parts))


if __name__ == "__main__":
    main()

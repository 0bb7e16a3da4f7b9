"""The tables of `sparse_quality.py`: means over seeds with their spread, and what they say of the papers' claims."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import mean, stdev
from typing import Any

TITLES = {"mlp": "MLP", "conv": "Residual network", "lm": "Decoder over bytes"}


def tables(done: Mapping[str, Mapping[str, Any]]) -> str:
    """Return Markdown of everything that was run."""
    parts = [_grid(done, task) for task in ("mlp", "conv", "lm")]
    parts.append(_claims(done))
    parts.append(_extra(done))
    return "\n\n".join(part for part in parts if part)


def values(done: Mapping[str, Mapping[str, Any]], task: str, method: str, sparsity: object, what: str) -> list[float]:
    """Return one number of all seeds that have been run."""
    start = f"{task}/{method}/{sparsity}/"
    return [float(run[what]) for key, run in sorted(done.items()) if key.startswith(start) and what in run]


def spread(found: list[float], percent: bool = True) -> str:
    """Return the mean and the standard deviation over seeds."""
    if not found:
        return "-"
    scale, digits = (100, 1) if percent else (1, 3)
    middle = f"{scale * mean(found):.{digits}f}"
    return f"{middle} ± {scale * stdev(found):.{digits}f}" if len(found) > 1 else middle


def _grid(done: Mapping[str, Mapping[str, Any]], task: str) -> str:
    keys = [key.split("/") for key in done if key.startswith(f"{task}/")]
    sparsities = sorted({key[2] for key in keys if key[2] != "0"}, key=float)
    methods = list(dict.fromkeys(key[1] for key in keys if key[1] != "dense"))
    if not keys:
        return ""
    what = "bits per byte" if task == "lm" else "accuracy"
    dense = spread(values(done, task, "dense", 0, what), task != "lm")
    lines = [f"**{TITLES[task]}**, {what}{'' if task == 'lm' else ' in %'}, dense {dense}", ""]
    lines.append("| | " + " | ".join(f"{float(s):.1%} zeros" for s in sparsities) + " |")
    lines.append("|---" * (len(sparsities) + 1) + "|")
    for method in methods:
        cells = []
        for sparsity in sparsities:
            cell = spread(values(done, task, method, sparsity, what), task != "lm")
            explored = values(done, task, method, sparsity, "explored")
            empty = values(done, task, method, sparsity, "empty layers")
            if explored and method not in ("GMP", "GraNet") and "static" not in method and not empty:
                cell += f" (R_s {mean(explored):.2f})"
            if empty and any(empty):
                cell += f" ({mean(empty):.1f} layers empty)"
            cells.append(cell)
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


CLAIMS = [
    ("SET, ITOP's settings", "static, ERK"),
    ("RigL, ITOP's settings", "static, ERK"),
    ("RigL", "static, ERK"),
    ("SET, once an epoch", "static, ERK"),
    ("static, ERK", "static, uniform"),
    ("GraNet", "GMP"),
    ("RigL, live outputs", "RigL"),
    ("RigL, live outputs", "static, ERK"),
    ("GraNet, live outputs", "GMP"),
    ("static, ERK", "small dense"),
    ("GraNet", "small dense"),
    ("SynFlow", "SNIP"),
]


def _claims(done: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the mean differences, and in how many of the seeds the first is not below the second."""
    lines = ["| higher? | than | network | points by sparsity (seeds that agree) |", "|---|---|---|---|"]
    for task in ("mlp", "conv"):
        for better, worse in CLAIMS:
            cells = []
            for sparsity in (0.9, 0.95, 0.98, 0.995, 0.999):
                high = values(done, task, better, sparsity, "accuracy")
                low = values(done, task, worse, sparsity, "accuracy")
                if high and len(high) == len(low):
                    agree = sum(a >= b for a, b in zip(high, low, strict=True))
                    gain = 100 * (mean(high) - mean(low))
                    cells.append(f"{sparsity:.1%}: {gain:+.1f} ({agree}/{len(high)})")
            if cells:
                lines.append(f"| {better} | {worse} | {task} | {', '.join(cells)} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def _extra(done: Mapping[str, Mapping[str, Any]]) -> str:
    rows: dict[tuple[str, str, str], list[float]] = {}
    for key, run in done.items():
        name, task, sparsity, _ = key.split("/")
        if sparsity == "-":
            for what, value in run.items():
                if isinstance(value, (int, float)):
                    rows.setdefault((name, task, what), []).append(float(value))
    if not rows:
        return ""
    lines = ["| row | task | what | mean ± deviation over seeds |", "|---|---|---|---|"]
    for (name, task, what), found in rows.items():
        lines.append(f"| {name} | {task} | {what} | {spread(found, percent=False)} |")
    return "\n".join(lines)

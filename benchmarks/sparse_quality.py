"""Accuracy of sparse training on Fashion-MNIST: every method, two small networks, three sparsities, three seeds.

The networks (an MLP 300-100 and a residual network of 16-32-64 channels, both with batch norm), the budget (12,000
training images, 12 epochs at batch 64, 2,256 steps, SGD with momentum and a cosine rate) and the settings of each
method were fixed before the table was run. Rows of a seed share the images, their order and the initial weights. Test
accuracy is that of the last step; nothing is chosen on the 10,000 test images. Each run is saved as it finishes and
not repeated.

    python benchmarks/sparse_quality.py --json benchmarks/results/sparse_quality.json
    python benchmarks/sparse_quality.py --rows init --seeds 1
    python benchmarks/sparse_quality.py --json FILE --docs docs/benchmarks.md --only-print
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pages import fill

from lowdim.core.machine import machine
from lowdim.data import classification
from lowdim.data.classification import Dataset
from lowdim.train.run.recipe import TrainingRecipe
from lowdim.train.run.run import train

LIMIT, EPOCHS, BATCH, EVERY = 12_000, 12, 64, 100
EPOCH_STEPS = 188  # of 12,000 images at batch 64
NETS: dict[str, Any] = {
    "mlp": {"name": "mlp", "hidden": [300, 100]},
    "conv": {"name": "conv", "channels": [16, 32, 64]},
}
SPARSITIES = (0.9, 0.95, 0.98)
EXTREME = (0.99, 0.995, 0.999)

Measures = dict[str, float]


@dataclass(frozen=True)
class Row:
    """One line of a table at one sparsity: what ``measure`` returns for a seed, "accuracy" among it.

    ``settings`` is anything that JSON can hold and that decides the result: where it differs from what a saved run was
    made with, the run is repeated.
    """

    net: str
    label: str
    sparsity: float
    measure: Callable[[int], Measures]
    settings: Any = None

    def key(self, seed: int) -> str:
        """Return the name under which a run is saved."""
        return f"{self.net} | {self.label} | {self.sparsity:g} | {seed}"


@functools.lru_cache(maxsize=1)
def images() -> Dataset:
    """Return the images, read once."""
    return classification.load("fashion-mnist", limit=LIMIT)


def recipe(net: str, sparsity: float, seed: int, **settings: Any) -> TrainingRecipe:
    """Return the recipe of one run, without twins: those are rows of their own."""
    return TrainingRecipe(
        data={"name": "fashion-mnist", "limit": LIMIT},
        net=NETS[net],
        sparsity=sparsity,
        seed=seed,
        epochs=EPOCHS,
        batch=BATCH,
        twins=(),
        device="cpu",
        **settings,
    )


def run(net: str, sparsity: float, settings: dict[str, Any], seed: int) -> Measures:
    """Train once and return what is measured."""
    found = train(recipe(net, sparsity, seed, **settings), data=images()).member("sparse")
    return {
        "accuracy": found["test"]["accuracy"],
        "validation": found["curve"][-1]["validation_accuracy"],
        "sparsity": found["sparsity"],
        "explored": found["explored"],
        "training_flops": found["costs"]["training_flops"],
    }


def dense(net: str, role: str, sparsity: float, seed: int) -> Measures:
    """Train the dense network, or the small one that has as few parameters as a sparse one keeps."""
    from lowdim.train.run.member import Member
    from lowdim.train.run.results import record

    member = Member(role, recipe(net, sparsity, seed), images(), torch.device("cpu"))  # type: ignore[arg-type]
    while member.epoch < EPOCHS:
        member.train_epoch()
    found = record(member)["facts"]
    return {
        "accuracy": found["test"]["accuracy"],
        "validation": found["curve"][-1]["validation_accuracy"],
        "training_flops": found["costs"]["training_flops"],
    }


def trained(net: str, label: str, sparsity: float, **settings: Any) -> Row:
    """Return a row that a recipe describes."""
    return Row(net, label, sparsity, functools.partial(run, net, sparsity, settings), settings)


def methods(net: str, sparsity: float) -> list[Row]:
    """Return the rows of the main table at one sparsity."""
    itop = {"name": "itop", "every": EVERY, "drop": 0.5}
    granet = {"name": "granet", "every": EVERY}
    rows: list[tuple[str, dict[str, Any]]] = [
        ("static, uniform", {"training": "static", "allocation": "uniform"}),
        ("static, ERK", {"training": "static"}),
        # once per epoch, and not after the last one, whose new weights would stay untrained
        ("SET", {"training": {"name": "set", "every": EPOCH_STEPS, "until": (EPOCHS - 1) / EPOCHS}}),
        ("RigL", {"training": {"name": "rigl", "every": EVERY}}),
        ("SET-ITOP", {"training": {**itop, "grow": "random"}}),
        ("RigL-ITOP", {"training": {**itop, "grow": "gradient"}}),
        ("RigL-ITOP, uniform", {"training": {**itop, "grow": "gradient"}, "allocation": "uniform"}),
        ("GMP", {"training": {"name": "gradual-magnitude", "every": EVERY}}),
        ("GraNet", {"training": granet}),
        ("GraNet-ST", {"training": {**granet, "start": 0.5}}),
    ]
    small = Row(net, "small dense", sparsity, functools.partial(dense, net, "small", sparsity))
    return [small, *(trained(net, label, sparsity, **settings) for label, settings in rows)]


def main_rows() -> list[Row]:
    """Return the main table."""
    found = []
    for net in NETS:
        found.append(Row(net, "dense", 0.0, functools.partial(dense, net, "dense", 0.0)))
        found += [row for sparsity in SPARSITIES for row in methods(net, sparsity)]
    return found


def start_rows() -> list[Row]:
    """Return masks chosen before training, up to sparsities at which SNIP loses whole layers."""
    starts = ("random", "magnitude", "snip", "grasp", "synflow")
    return [
        trained("conv", f"{name}, then static", sparsity, training="static", initialisation=name)
        for sparsity in EXTREME
        for name in starts
    ]


GROUPS: dict[str, Callable[[], list[Row]]] = {"main": main_rows, "init": start_rows}
"""What ``--rows`` takes. A further table is one more function that returns its rows."""

CLAIMS = [
    ("dynamic above static", ("SET", "RigL", "SET-ITOP", "RigL-ITOP"), "static, ERK"),
    ("ERK at or above uniform", ("static, ERK",), "static, uniform"),
    ("ERK at or above uniform, moving", ("RigL-ITOP",), "RigL-ITOP, uniform"),
    ("GraNet at or above GMP", ("GraNet",), "GMP"),
    ("sparse above a small dense network", ("RigL-ITOP", "GraNet"), "small dense"),
    ("SynFlow above SNIP", ("synflow, then static",), "snip, then static"),
]
"""What the papers say: each of the first above the second, compared seed by seed."""


class Results:
    """Finished runs by key, saved after each."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.runs: dict[str, dict[str, Any]] = {}
        if path and path.exists():
            self.runs = json.loads(path.read_text())["runs"]

    def find(self, row: Row, seed: int) -> Measures | None:
        """Return a finished run of the same settings."""
        found = self.runs.get(row.key(seed))
        return found["measures"] if found and found["settings"] == self._settings(row) else None

    def add(self, row: Row, seed: int, measures: Measures, seconds: float) -> None:
        """Keep a run."""
        self.runs[row.key(seed)] = {
            "settings": self._settings(row),
            "measures": measures,
            "seconds": round(seconds, 1),
        }
        if self.path is None:
            return
        about = {"machine": machine(), "torch": torch.__version__, "threads": torch.get_num_threads()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(f".{self.path.name}.partial")
        partial.write_text(json.dumps({"about": about, "runs": self.runs}, indent=1) + "\n")
        os.replace(partial, self.path)

    @staticmethod
    def _settings(row: Row) -> Any:
        budget = {"limit": LIMIT, "epochs": EPOCHS, "batch": BATCH, "net": NETS.get(row.net)}
        return json.loads(json.dumps({**budget, "row": row.settings}))

    def accuracies(self, row: Row, seeds: range) -> list[float]:
        """Return the test accuracies of the seeds that are there, in per cent."""
        runs = [self.find(row, seed) for seed in seeds]
        return [100 * run["accuracy"] for run in runs if run is not None]


def cell(values: list[float]) -> str:
    """Write mean and range."""
    if not values:
        return ""
    spread = f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{spread}"


def tables(rows: list[Row], results: Results, seeds: range) -> str:
    """Return one Markdown table per network."""
    parts = []
    for net in dict.fromkeys(row.net for row in rows):
        mine = [row for row in rows if row.net == net]
        columns = sorted({row.sparsity for row in mine if row.sparsity})
        parts += [f"| {net}, test accuracy % | " + " | ".join(f"{s:.4g}" for s in columns) + " |"]
        parts += ["|---" * (len(columns) + 1) + "|"]
        for label in dict.fromkeys(row.label for row in mine):
            by_sparsity = {
                row.sparsity: cell(results.accuracies(row, seeds)) for row in mine if row.label == label
            }
            cells = [by_sparsity.get(s, by_sparsity.get(0.0, "")) for s in columns]
            parts.append(f"| {label} | " + " | ".join(cells) + " |")
        parts.append("")
    return "\n".join(parts)


def claims(rows: list[Row], results: Results, seeds: range) -> str:
    """Return, claim by claim, the mean difference and in how many of the seeds it holds."""
    at = {(row.net, row.label, row.sparsity): row for row in rows}
    lines = [
        "| claim | network | zeros | row | points, mean over seeds | seeds that agree |",
        "|---" * 6 + "|",
    ]
    for claim, better, worse in CLAIMS:
        for (net, label, sparsity), row in at.items():
            other = at.get((net, worse, sparsity))
            if label not in better or other is None:
                continue
            pairs = [(results.find(row, seed), results.find(other, seed)) for seed in seeds]
            gains = [100 * (a["accuracy"] - b["accuracy"]) for a, b in pairs if a and b]
            if gains:
                agree = sum(gain >= 0 for gain in gains)
                lines.append(
                    f"| {claim} | {net} | {sparsity:.4g} | {label} | {statistics.fmean(gains):+.2f} "
                    f"| {agree} of {len(gains)} |"
                )
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, then print every table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", nargs="+", choices=list(GROUPS), default=list(GROUPS))
    parser.add_argument("--only", default="", help="rows whose name, 'conv | RigL | 0.9', contains this")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="where runs are kept; those found there are not repeated")
    parser.add_argument("--docs", type=Path, help="page that the tables go into")
    parser.add_argument("--only-print", action="store_true", help="train nothing, print what is there")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rows = [row for group in given.rows for row in GROUPS[group]() if given.only in row.key(0)]
    results, seeds = Results(given.json), range(given.seeds)
    for seed in seeds:  # seed by seed, so that a run cut short has whole tables of fewer seeds
        for row in rows:
            if given.only_print or results.find(row, seed) is not None:
                continue
            begun = time.perf_counter()
            measures = row.measure(seed)
            seconds = time.perf_counter() - begun
            results.add(row, seed, measures, seconds)
            print(f"{row.key(seed)}: {100 * measures['accuracy']:.2f} in {seconds:.0f} s", flush=True)
    text = f"{tables(rows, results, seeds)}\n{claims(rows, results, seeds)}"
    print(text)
    if given.docs:
        fill(given.docs, "sparse-quality", text)


if __name__ == "__main__":
    main()

"""Training on samples that are not alike: worst groups, pruned data, hard samples; beside what one would pick instead.

Prints the rows and the hours first; every row is a run of sparse training of its own and is written when it is done, so
that a killed run goes on and a row that was measured is not measured again.

    python benchmarks/bias_training.py --dry-run
    python benchmarks/bias_training.py --quick --parts bias --json benchmarks/results/bias-training.json
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from waiting import sleep_while_waiting

from lowdim.core.machine import machine
from lowdim.data.select.ranks import Ranks
from lowdim.train.compare.recipe import TrainingRecipe
from lowdim.train.compare.run import train
from lowdim.train.selection.api import rank

ZEROS = (0.9, 0.95, 0.98)
DENSITIES = (0.5, 0.8, 0.9, 0.95)
BIASES = {
    "one bias": ("coloured-fashion-mnist", {"conflicting": 0.02}),
    "two biases": ("coloured-textured-fashion-mnist", {"conflicting": 0.02, "second": 0.05}),
}
REST = {"name": "rest", "up": 50.0}
AGAINST: dict[str, dict[str, Any]] = {
    "ERM": {},
    "JTT": {"objective": {"name": "jtt", "epochs": 1, "up": 20.0}},
    "group reweighting": {"objective": "group-weights"},
    "Group-DRO": {"objective": "group-dro", "sampler": "weighted"},
    "REST, group labels": {"objective": REST},
    "REST, Sebra's ranks": {"objective": REST, "ranks": "sebra"},
    "Sebra": {"objective": "sebra", "ranks": "sebra"},
}


Results = list[dict[str, Any]]


@dataclass(frozen=True)
class Size:
    """How much is trained on: samples and epochs of each part, and seeds."""

    samples: int
    epochs: int
    seeds: int


TRIED: dict[str, list[dict[str, Any]]] = {
    "JTT": [
        {"objective": {"name": "jtt", "epochs": epochs, "up": up}}
        for epochs in (1, 2)
        for up in (5.0, 20.0, 50.0, 100.0)
    ],
    "REST, Sebra's ranks": [{"objective": REST | {"up": up}, "ranks": "sebra"} for up in (10.0, 25.0, 50.0, 100.0)],
    "Sebra": [
        {
            "objective": {"name": "sebra", "temperature": temperature, "weight": weight},
            "sampler": {"name": "pairs", "gap": gap},
            "ranks": "sebra",
        }
        for gap in (2, 5, 10, 20)
        for temperature in (0.05, 0.15)
        for weight in (0.5, 4.0)
    ],
}
"""What is tried for each objective that sees no group label, on a seed that no table reports."""

TRIAL_SEED = 100

FULL = {
    "bias": Size(10_000, 10, 3),
    "trial": Size(10_000, 10, 1),
    "tuned": Size(10_000, 10, 3),
    "people": Size(176, 40, 3),
    "pruning": Size(20_000, 10, 3),
    "hard": Size(10_000, 10, 3),
}
QUICK = {
    "bias": Size(4_000, 10, 1),
    "trial": Size(4_000, 10, 1),
    "tuned": Size(4_000, 10, 1),
    "people": Size(176, 40, 3),
    "pruning": Size(10_000, 10, 1),
    "hard": Size(4_000, 8, 1),
}
SECONDS = {"bias": 1.2e-4, "trial": 1.2e-4, "tuned": 1.2e-4, "people": 1e-3, "pruning": 6e-5, "hard": 6e-5}
"""Of a sample and an epoch, roughly; three times as many where samples are pairs, eight under PGD."""


@dataclass(frozen=True)
class Row:
    """A run: where it stands, what it changes in its part's recipe, and which ranks it is given."""

    part: str
    name: str
    seed: int
    recipe: dict[str, Any]
    ranks: str = ""
    work: float = 1.0
    dense: bool = False

    @property
    def key(self) -> str:
        """What tells the row from others in the results."""
        return f"{self.part} | {self.name} | {self.seed}"


def _against(part: str, size: Size, what: str, title: str, change: dict[str, Any], seed: int, zeros: float) -> Row:
    """Return a row of an objective under one of the planted biases."""
    name, settings = BIASES[what]
    read = {"samples": size.samples * 10 // 9 + 10}  # a tenth is set aside to validate
    planted = {"seed": seed} if seed == TRIAL_SEED else {}
    data = {"name": name, "settings": settings | read | planted, "limit": size.samples, "seed": seed}
    recipe = {"data": data, **change, "sparsity": zeros}
    ranks = recipe.pop("ranks", "")
    return Row(part, f"{what}, {title}, {zeros:.0%}", seed, recipe, ranks, work=3 if title.startswith("Sebra") else 1)


def bias(size: Size, results: Results) -> Iterator[Row]:
    """Worst group with one and with two biases, dense and at three sparsities, by objective."""
    for seed in range(size.seeds):
        for what in BIASES:
            for title, change in AGAINST.items():
                for zeros in ZEROS:
                    row = _against("bias", size, what, title, change, seed, zeros)
                    dense = zeros == ZEROS[0]
                    yield replace(row, dense=dense, work=row.work * (1 + dense))


def trial(size: Size, results: Results) -> Iterator[Row]:
    """What each objective without group labels can be set to, at 90% zeros.

    Colours and cut are not those of a table; most pictures are, and the best is chosen by the worst group of the test
    part, for all objectives alike: as JTT's authors choose, by labels.
    """
    for title, changes in TRIED.items():
        for number, change in enumerate(changes):
            yield _against("trial", size, "one bias", f"{title}, try {number}", change, TRIAL_SEED, ZEROS[0])


def tuned(size: Size, results: Results) -> Iterator[Row]:
    """Worst group of each objective without group labels, as it was best in its trial, which comes before."""
    for title, changes in TRIED.items():
        change = changes[best_of(title, size, results)]
        for seed in range(size.seeds):
            for what in BIASES:
                yield _against("tuned", size, what, title, change, seed, ZEROS[0])


def best_of(title: str, size: Size, results: Results) -> int:
    """Return which try had the best worst group; the first, which costs as much, before all are measured."""
    found = {row["key"]: row["members"]["sparse"]["worst_group"] for row in results}
    tries = [found.get(row.key, -1.0) for row in trial(size, results) if f", {title}, try" in row.name]
    return tries.index(max(tries)) if min(tries) >= 0 else 0


def people(size: Size, results: Results) -> Iterator[Row]:
    """Worst group under a natural bias: emoji of women and men, whose skin tone goes with the class in training."""
    ways: dict[str, dict[str, Any]] = {
        "ERM": {},
        "REST, group labels": {"objective": {"name": "rest", "up": 15.0}},
        "JTT": {"objective": {"name": "jtt", "epochs": 5, "up": 15.0}},
        "Group-DRO": {"objective": {"name": "group-dro", "step": 0.1}, "sampler": "weighted"},
    }
    for seed in range(size.seeds):
        for title, change in ways.items():
            data = {"name": "emoji-people", "seed": seed, "settings": {"seed": seed, "conflicting": 0.05}}
            net = {"name": "conv", "channels": [16, 32]}
            how = {"batch": 32, "sparsity": 0.9, "training": {"name": "rigl", "every": 10}}
            yield Row("people", title, seed, {"data": data, "net": net, **how, **change}, work=2, dense=True)


def pruning(size: Size, results: Results) -> Iterator[Row]:
    """70% of the data by dynamic pruning, beside random 70%, all of it, and all of it for 0.7 of the steps."""
    prune = {"name": "dynamic-pruning", "keep": 0.7}
    ways = {
        "full data": {},
        "full data, 0.7 of the steps": {"epochs": round(0.7 * size.epochs)},
        "70%, hardest": {"sampler": prune},
        "70%, drawn by loss": {"sampler": prune | {"choose": "drawn"}},
        "70%, random anew": {"sampler": prune | {"by": "random"}},
        "70%, random once": {"sampler": {"name": "ranked", "share": 0.7, "part": "random"}},
    }
    for seed in range(size.seeds):
        for title, change in ways.items():
            data = {"name": "fashion-mnist", "limit": size.samples, "seed": seed}
            yield Row("pruning", title, seed, {"data": data, "sparsity": 0.9, **change}, dense=True, work=2)


def hard(size: Size, results: Results) -> Iterator[Row]:
    """Sparse over dense on the hardest 10, 50 and 100% of the data, under PGD and with noise, at four densities."""
    kinds: dict[str, dict[str, Any]] = {
        f"hardest {share:.0%}": {"sampler": {"name": "ranked", "share": share}} for share in (0.1, 0.5)
    }
    kinds["all samples"] = {}
    kinds["PGD training"] = {"objective": {"name": "adversarial", "test_steps": 20}}
    kinds["noise, severity 5"] = {}
    for seed in range(size.seeds):
        for title, change in kinds.items():
            for zeros in DENSITIES:
                noise = {"corruption": "gaussian-noise", "severity": 5, "samples": size.samples * 10 // 9 + 10}
                name, settings = ("corrupted-fashion-mnist", noise) if "noise" in title else ("fashion-mnist", {})
                data = {"name": name, "limit": size.samples, "seed": seed, "settings": settings}
                work = 8.0 if "PGD" in title else 1.0
                row = Row("hard", f"{title}, {zeros:.0%}", seed, {"data": data, "sparsity": zeros, **change}, work=work)
                dense = zeros == DENSITIES[0]
                yield replace(row, ranks="el2n" if "hardest" in title else "", dense=dense, work=work * (1 + dense))


PARTS = {"bias": bias, "trial": trial, "tuned": tuned, "people": people, "pruning": pruning, "hard": hard}


class Bench:
    """Measures rows; ranks are made once for each data and seed."""

    def __init__(self, home: Path, sizes: dict[str, Size]) -> None:
        self.home, self.sizes = home, sizes

    def ranks(self, method: str, recipe: TrainingRecipe) -> Ranks:
        """Return the ranks of a recipe's training samples, from an earlier row or made now."""
        data = recipe.data
        out = self.home / f"ranks-{method}-{data.name}-{data.limit}-{data.seed}"
        if not out.exists():
            found = rank(
                data.name, out=out, net=recipe.net.model_dump(mode="json"), method=method, limit=data.limit,
                validation=data.validation, settings=data.settings or None, seed=data.seed, resume=True,
            )  # fmt: skip
            print(f"  ranks by {method} in {found.run['seconds']:.0f} s", flush=True)
        return Ranks.load(out)

    def run(self, row: Row) -> dict[str, Any]:
        """Train a row and return what was measured."""
        size = self.sizes[row.part]
        given = {"epochs": size.epochs, "training": "rigl", "batch": 128, "device": "cpu", "seed": row.seed}
        recipe = TrainingRecipe(**{**given, **row.recipe, "twins": ["dense"] if row.dense else []}, **_ranked(row))
        ranks = self.ranks(row.ranks, recipe) if row.ranks else None
        begun = time.perf_counter()
        result = train(recipe, ranks=ranks)
        taken = {stage["name"]: stage["seconds"] for stage in result.run["stages"]}
        rows = {}
        for role, member in result.facts["members"].items():
            seconds = taken["Dense" if role == "dense" else "Sparse"]
            kept = {key: member["test"][key] for key in _MEASURED if key in member["test"]}
            rows[role] = kept | {"seconds": seconds, "epoch_seconds": seconds / recipe.epochs}
        facts = {"steps": result.facts["steps"]["total"], "seconds": time.perf_counter() - begun, "members": rows}
        return {"key": row.key, "recipe": recipe.to_dict(), "data": result.facts["data"].get("ranks"), **facts}


_MEASURED = ("accuracy", "worst_group", "robust_accuracy")


def _ranked(row: Row) -> dict[str, Any]:
    return {"ranks": f"in memory, by {row.ranks}"} if row.ranks else {}


def table(results: list[dict[str, Any]]) -> str:
    """Return the table of what was measured."""
    lines = ["| row | seed | network | accuracy | worst group | under attack | s/epoch |", f"|{'---|' * 7}"]
    for found in results:
        _, name, seed = found["key"].split(" | ")
        for role, member in found["members"].items():
            values = [f"{100 * member[key]:.1f}" if key in member else "" for key in _MEASURED]
            lines.append(f"| {name} | {seed} | {role} | {' | '.join(values)} | {member['epoch_seconds']:.2f} |")
    return "\n".join(lines)


def main() -> None:
    """Print the plan, measure every row, print the table."""
    sleep_while_waiting()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--only", help="rows whose name contains this")
    parser.add_argument("--quick", action="store_true", help="fewer samples and epochs, one seed")
    parser.add_argument("--out", type=Path, default=Path("runs/bias-training"))
    parser.add_argument("--json", type=Path, default=Path("runs/bias-training/results.json"))
    parser.add_argument("--dry-run", action="store_true")
    given = parser.parse_args()
    sizes = QUICK if given.quick else FULL
    results: Results = json.loads(given.json.read_text())["rows"] if given.json.exists() else []

    def rows_of(part: str) -> list[Row]:
        return [row for row in PARTS[part](sizes[part], results) if (given.only or "") in row.name]

    rows = [row for part in given.parts for row in rows_of(part)]
    done = {found["key"] for found in results}
    left = [row for row in rows if row.key not in done]
    hours = sum(sizes[r.part].samples * sizes[r.part].epochs * SECONDS[r.part] * r.work for r in left) / 3600
    for row in left:
        print(f"  {row.key}")
    print(f"{len(left)} rows to measure, {len(rows) - len(left)} measured already; about {hours:.1f} hours", flush=True)
    if given.dry_run:
        return
    given.json.parent.mkdir(parents=True, exist_ok=True)
    given.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(given.out, sizes)
    for part in given.parts:
        for row in rows_of(part):
            if row.key in done:
                continue
            if part == "tuned" and any(tried.key not in done for tried in trial(sizes["trial"], results)):
                raise SystemExit("The part 'tuned' takes the best of --parts trial, which is not measured yet.")
            results.append(bench.run(row))
            done.add(row.key)
            sizes_used = {part: asdict(size) for part, size in sizes.items()}
            told = {"machine": machine(), "sizes": sizes_used, "rows": results}
            given.json.write_text(json.dumps(told, indent=1) + "\n")
            print("\n".join(table(results[-1:]).splitlines()[2:]), flush=True)
    print(table(results))


if __name__ == "__main__":
    main()

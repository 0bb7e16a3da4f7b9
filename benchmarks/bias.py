"""Bias ranking against a truth that was planted, and the alarms on data without a bias.

The plan comes first, in runs and hours, from a ranking that is timed here. What is finished stays in --home: the same
command goes on. Rows of what is trained with the ranks are in bias_training.py.

    python benchmarks/bias.py --home ~/bias
    python benchmarks/bias.py --home ~/bias --quick     # one seed, a part of the data, some minutes
    python benchmarks/bias.py --home ~/bias --table
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from scipy.stats import spearmanr
from torch import Tensor
from waiting import sleep_while_waiting

from lowdim.core.machine import machine
from lowdim.data import classification
from lowdim.data.planted.told import truths
from lowdim.models.small import nets
from lowdim.train.compare.measure import auroc
from lowdim.train.loop import Loop
from lowdim.train.selection.api import RATES
from lowdim.train.selection.sebra import Sebra
from lowdim.train.selection.sign import sign_of_bias

SEEDS, ALARMS, PLAIN_EPOCHS = (0, 1, 2), 20, 5
QUICK, FULL = 6_000, 20_000
"""Training samples of a picture set with --quick, and without it."""


class Row(NamedTuple):
    """A row of the table: what is measured, once for each seed."""

    title: str
    must: str
    run: Callable[[int, int], dict[str, Any]]
    seeds: Sequence[int] = SEEDS


class Ranked(NamedTuple):
    """A finished ranking of a built-in set; ``fine`` orders samples of one rank by their probability in it."""

    rank: Tensor
    fine: Tensor
    found: bool
    p: float | None
    facts: Mapping[str, Any]
    seconds: float


def ranked(
    name: str, net: str, seed: int, limit: int | None, settings: Mapping[str, Any] | None = None, **selector: Any
) -> Ranked:
    """Rank a built-in set with one of the small networks, by the settings of ``lowdim rank`` and what else is given."""
    data = classification.load(name, limit=limit, seed=seed, settings=settings)
    model = nets.parse(net).build(data, seed)
    begun = time.process_time()
    ranks = Sebra(**{"lr": RATES[net], **selector}).rank(model, data, seed=seed)
    seconds = time.process_time() - begun
    sign = sign_of_bias(ranks.values.get("margin", torch.zeros(0)), seed)
    return Ranked(ranks.rank, ranks.rank - 0.999 * ranks.values["p"].double(), sign.found, sign.p, ranks.facts, seconds)


def truth(name: str, seed: int, limit: int | None, settings: Mapping[str, Any]) -> Any:
    """Return what was planted in the same samples."""
    return truths(name, limit=limit, seed=seed, settings=settings).train


def within(label: Tensor, measure: Callable[[Tensor], float | None]) -> float:
    """Return the mean of a measure over the classes in which it is defined."""
    found = [measure(label == number) for number in label.unique()]
    return statistics.fmean(value for value in found if value is not None)


def separation(rank: Tensor, conflicting: Tensor, label: Tensor) -> float:
    """Return how likely a conflicting sample is ranked behind an aligned one of its class, ties counting half."""

    def one(mine: Tensor) -> float | None:
        high, low = rank[mine & conflicting].double(), rank[mine & ~conflicting].double()
        return auroc(high, low) if len(high) and len(low) else None

    return within(label, one)


def binary(name: str, net: str, conflicting: float) -> Callable[[int, int], dict[str, Any]]:
    """Return a row that measures AUROC within class."""

    def run(seed: int, limit: int) -> dict[str, Any]:
        how = {"conflicting": conflicting, "seed": seed}
        found, told = ranked(name, net, seed, limit, how), truth(name, seed, limit, how)
        return {
            "AUROC": separation(found.rank, told.conflicting()[:, 0], told.label),
            "p": found.p,
            "seconds": found.seconds,
        }

    return run


def graded(name: str, net: str, **selector: Any) -> Callable[[int, int], dict[str, Any]]:
    """Return a row that measures Spearman's correlation of early ranks and graded spuriosity within class."""

    def run(seed: int, limit: int) -> dict[str, Any]:
        how = {"conflicting": 0.05, "graded": True, "seed": seed}
        found, told = ranked(name, net, seed, limit, how, **selector), truth(name, seed, limit, how)
        spuriosity = told.spuriosity()[:, 0]

        def correlation(order: Tensor) -> float:
            return within(told.label, lambda mine: float(spearmanr(-order[mine], spuriosity[mine])[0]))

        return {
            "Spearman": correlation(found.rank),
            "Spearman, by p within a rank": correlation(found.fine),
            "p": found.p,
            "seconds": found.seconds,
        }

    return run


def two(seed: int, limit: int) -> dict[str, Any]:
    """Measure two biases of different strength: both found, and the stronger one's samples behind the weaker one's."""
    name = "coloured-textured-fashion-mnist"
    how = {"conflicting": 0.05, "second": 0.05, "strength": 1.0, "second_strength": 0.25, "seed": seed}
    found, told = ranked(name, "mlp", seed, limit, how), truth(name, seed, limit, how)
    strong, weak = told.conflicting().unbind(1)
    only = (strong & ~weak, weak & ~strong)

    def order(mine: Tensor) -> float | None:
        high, low = found.rank[mine & only[0]].double(), found.rank[mine & only[1]].double()
        return auroc(high, low) if len(high) and len(low) else None

    return {
        "AUROC strong": separation(found.rank, strong, told.label),
        "AUROC weak": separation(found.rank, weak, told.label),
        "strong behind weak": within(told.label, order),
        "p": found.p,
        "seconds": found.seconds,
    }


def epochs(seed: int, limit: int) -> dict[str, Any]:
    """Measure an epoch of ranking, its judging included, over one of plain training on as many samples."""
    data = classification.load("coloured-fashion-mnist", limit=limit, seed=seed, settings={"conflicting": 0.05})
    times = {}
    for what in ("plain", "ranking") * 2:  # the first of each warms up
        model = nets.parse("mlp").build(data, seed)
        begun = time.process_time()
        if what == "plain":
            optimizer = torch.optim.Adam(model.parameters(), RATES["mlp"])
            loop = Loop(
                model,
                optimizer,
                loss=lambda net, rows: torch.nn.functional.cross_entropy(net(data.train.x[rows]), data.train.y[rows]),
            )
            for _ in range(PLAIN_EPOCHS):
                loop.run(torch.randperm(len(data.train.y)).split(64))
        else:
            ranking = Sebra(lr=RATES["mlp"], draws="replacement", epochs=PLAIN_EPOCHS).begin(model, data, seed=seed)
            while not ranking.ended:
                ranking.train_epoch()
        times[what] = time.process_time() - begun
    whole = ranked("coloured-fashion-mnist", "mlp", seed, limit, {"conflicting": 0.05})
    plain = times["plain"] / PLAIN_EPOCHS
    return {
        "epoch over plain": times["ranking"] / times["plain"],
        "whole ranking in plain epochs": whole.seconds / plain,
        "its epochs": whole.facts["epochs"],
    }


def alarms(name: str, net: str, settings: Mapping[str, Any] | None) -> Callable[[int, int], dict[str, Any]]:
    """Return a row that counts alarms on data without a planted bias."""

    def run(seed: int, limit: int) -> dict[str, Any]:
        # of the pictures no more are coloured than are used, behind the cut of a tenth
        how = None if settings is None else {**settings, "seed": seed, "samples": round(limit / 0.85)}
        found = ranked(name, net, seed, limit, how)
        return {"alarm": float(found.found), "p": found.p, "seconds": found.seconds}

    return run


ROWS: dict[str, Row] = {
    **{
        f"colour-{share:g}": Row(
            f"colour, {share:.1%} conflicting", "0.9", binary("coloured-fashion-mnist", "mlp", share)
        )
        for share in (0.005, 0.01, 0.05)
    },
    "colour-conv": Row("colour, 1.0% conflicting, conv", "0.9", binary("coloured-fashion-mnist", "conv", 0.01)),
    "texture": Row("texture, 1.0% conflicting", "0.9", binary("textured-fashion-mnist", "mlp", 0.01)),
    "digits": Row("colour on digits, 2.0% conflicting", "0.9", binary("coloured-digits", "mlp", 0.02)),
    "word": Row("word in Wikipedia, 5.0% conflicting", "0.9", binary("cued-wiki-topics", "text", 0.05)),
    "graded-texture": Row("texture, graded", "0.6", graded("textured-fashion-mnist", "mlp")),
    "graded-texture-90": Row("texture, graded, p_crit 0.9", "0.6", graded("textured-fashion-mnist", "mlp", p_crit=0.9)),
    "graded-colour": Row("colour, graded", "0.6", graded("coloured-fashion-mnist", "mlp")),
    "graded-colour-conv": Row("colour, graded, conv", "0.6", graded("coloured-fashion-mnist", "conv")),
    "graded-colour-90": Row(
        "colour, graded, conv, p_crit 0.9", "0.6", graded("coloured-fashion-mnist", "conv", p_crit=0.9)
    ),
    "graded-word": Row("word in Wikipedia, graded", "0.6", graded("cued-wiki-topics", "text")),
    "two": Row("colour 1.0 and texture 0.25", "both, in order", two),
    "time": Row("time of an epoch", "1.4", epochs, SEEDS[:1]),
    "alarms-twin": Row(
        "alarms, unbiased colours",
        "1 in 20",
        alarms("coloured-fashion-mnist", "mlp", {"unbiased": True}),
        range(ALARMS),
    ),
    "alarms-plain": Row("alarms, Fashion-MNIST", "1 in 20", alarms("fashion-mnist", "mlp", None), range(ALARMS)),
    "alarms-word": Row(
        "alarms, unbiased words", "1 in 20", alarms("cued-wiki-topics", "text", {"unbiased": True}), range(ALARMS)
    ),
}


def measure(rows: Mapping[str, Row], home: Path, limit: int, quick: bool) -> dict[str, list[dict[str, Any]]]:
    """Measure every row for each of its seeds, or find what was measured."""
    home.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[dict[str, Any]]] = {}
    for key, row in rows.items():
        for seed in row.seeds if not quick or key.startswith("alarms") else row.seeds[:1]:
            kept = home / f"{key}-{limit}-{seed}.json"
            if not kept.exists():
                kept.write_text(json.dumps({"row": key, "seed": seed, "limit": limit, **row.run(seed, limit)}))
                print(kept.read_text(), flush=True)
            found.setdefault(key, []).append(json.loads(kept.read_text()))
    return found


def table(rows: Mapping[str, Row], found: Mapping[str, list[dict[str, Any]]]) -> str:
    """Return a row of Markdown for each row and measure: its must, and its values, one for each seed, or their sum."""
    lines = ["| bias | measure | must | measured |", "|---|---|---|---|"]
    for key, results in found.items():
        names = [name for name in results[0] if name not in ("row", "seed", "limit", "seconds", "p")]
        for place, name in enumerate(names):
            values = [result[name] for result in results]
            text = f"{sum(values):.0f} of {len(values)}" if name == "alarm" else ", ".join(f"{v:.3f}" for v in values)
            lines.append(f"| {rows[key].title} | {name} | {'' if place else rows[key].must} | {text} |")
    return "\n".join(lines)


def main() -> None:
    """Say the plan, then measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, required=True, help="where results are kept")
    parser.add_argument("--quick", action="store_true", help="one seed, 6,000 samples; 20 seeds for alarms")
    parser.add_argument("--only", nargs="*", choices=ROWS, help="rows; all if not given")
    parser.add_argument("--table", action="store_true", help="only show what was measured")
    given = parser.parse_args()
    sleep_while_waiting()
    rows = {key: row for key, row in ROWS.items() if not given.only or key in given.only}
    limit = QUICK if given.quick else FULL
    if given.table:
        kept = {key: sorted(given.home.glob(f"{key}-{limit}-*.json")) for key in rows}
        print(
            table(rows, {key: [json.loads(file.read_text()) for file in files] for key, files in kept.items() if files})
        )
        return
    begun = time.perf_counter()
    ranked("coloured-fashion-mnist", "mlp", 0, limit, {"conflicting": 0.05})
    one = time.perf_counter() - begun
    runs = sum(len(row.seeds) if not given.quick or key.startswith("alarms") else 1 for key, row in rows.items())
    print(f"{runs} runs, about {1.5 * runs * one / 3600:.1f} hours: the first took {one:.0f} s", flush=True)
    found = measure(rows, given.home, limit, given.quick)
    result = {"limit": limit, "machine": machine(), "rows": found}
    (given.home / "bias.json").write_text(json.dumps(result, indent=2) + "\n")
    print(table(rows, found))


if __name__ == "__main__":
    main()

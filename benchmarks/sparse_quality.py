"""Does sparse training do on real data what the papers say? Every row, wins and losses alike.

Fashion-MNIST, of which 12,800 images train, 6,000 validate and 10,000 test: an MLP (784-300-100-10 with batch
norm, 20 epochs) and a small residual network (41,000 weights, 12 epochs), SGD with momentum, batch 128; and a
decoder with 400,000 weights in its blocks over the bytes of Wikipedia articles. Accuracies are of the last
step, on the test images; what has to choose, chooses on the validation images. Every run is written down when
it ends and is not repeated: stop and start as you like.

    python benchmarks/sparse_quality.py                     # all rows, three seeds: about an hour on one core
    python benchmarks/sparse_quality.py --rows mlp --seeds 0
    python benchmarks/sparse_quality.py --print             # the tables of what has been run
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from pages import fill
from quality_extra import EXTRA
from quality_tables import tables
from quality_tasks import TASKS, Task, language_model, train

from lowdim.train import (
    ITOP,
    SET,
    SNIP,
    GradualMagnitude,
    GraNet,
    RigL,
    SparseTraining,
    Static,
    SynFlow,
    select,
)

SPARSITIES = (0.9, 0.95, 0.98)
EVERY = 50  # steps between mask updates
METHODS: dict[str, dict[str, Any]] = {
    "static, uniform": {"method": Static(), "allocation": "uniform"},
    "static, ERK": {"method": Static()},
    "SET, once an epoch": {"method": SET(every=100)},
    "SET, ITOP's settings": {"method": ITOP(every=EVERY, grow="random")},
    "RigL": {"method": RigL(every=EVERY)},
    "RigL, ITOP's settings": {"method": ITOP(every=EVERY, grow="gradient")},
    "RigL, live outputs": {"method": RigL(every=EVERY, candidates="live")},
    "GMP": {"method": GradualMagnitude(every=EVERY)},
    "GraNet": {"method": GraNet(every=EVERY, until=0.7)},
    "GraNet, live outputs": {"method": GraNet(every=EVERY, until=0.7, candidates="live")},
}
LM = {"static, ERK": Static(), "SET": SET(every=100, until=0.75, regrow="zero"), "RigL": RigL(every=100)}
LM_STEPS = 1200


def image_run(task: Task, settings: dict[str, Any] | None, sparsity: float, seed: int) -> dict[str, Any]:
    """Train one network; None is dense."""
    model = task.model(seed)
    optimizer = task.optimizer(model)
    training = None
    if settings is not None:
        settings = {"sparsity": sparsity, "total_steps": task.steps, "seed": seed} | settings
        training = SparseTraining(model, optimizer, **settings)
    train(task, model, optimizer, task.batches(seed), task.factor)
    found: dict[str, Any] = {"accuracy": task.accuracy(model)}
    if training is not None:
        found |= {"explored": training.explored(), "sparsity": training.sparsity()}
    return found


def small_run(task: Task, sparsity: float, seed: int) -> dict[str, Any]:
    """Train a dense network of the same form with as many weights as a sparse one keeps."""
    data = task.data()
    zeros = round(sparsity * sum(weight.numel() for weight in select(task.model(seed)).values()))
    small = task.net.within(data, task.net.parameters(data) - zeros)
    model = small.build(data, seed)
    train(task, model, task.optimizer(model), task.batches(seed), task.factor)
    return {"accuracy": task.accuracy(model), "parameters": sum(p.numel() for p in model.parameters())}


def initialised_run(task: Task, name: str, sparsity: float, seed: int) -> dict[str, Any]:
    """Train with the masks of SNIP or SynFlow."""
    model, data = task.model(seed), task.data()
    if name == "SNIP":
        x, y = data.train
        masks = SNIP().masks(model, (x[:100], y[:100]), sparsity=sparsity)
    else:
        masks = SynFlow().masks(model, (1, *data.shape), sparsity=sparsity)
    empty = [layer for layer, mask in masks.items() if not mask.any()]
    found = image_run(task, {"method": Static(), "masks": masks, "sparsity": None}, sparsity, seed)
    return found | {"empty layers": len(empty)}


def language_run(name: str, sparsity: float, seed: int) -> dict[str, Any]:
    """Train the decoder; sparsity 0 is dense."""

    def make(model: torch.nn.Module, optimizer: Any) -> SparseTraining | None:
        if not sparsity:
            return None
        settings: dict[str, Any] = {"sparsity": sparsity, "total_steps": LM_STEPS, "seed": seed}
        return SparseTraining(model, optimizer, method=LM[name], **settings)

    bits, training = language_model(make, seed, LM_STEPS)
    return {"bits per byte": bits} | ({"explored": training.explored()} if training else {})


# ---------------------------------------------------------------- what there is to run

Job = tuple[str, Callable[[], dict[str, Any]]]


def jobs(rows: list[str], seeds: list[int]) -> Iterator[Job]:
    """Yield all runs by name."""
    for seed in seeds:
        for name in ("mlp", "conv"):
            if name in rows:
                yield from _image_jobs(TASKS[name], seed)
        if "lm" in rows:
            yield f"lm/dense/0/{seed}", lambda seed=seed: language_run("", 0.0, seed)
            for method in LM:
                yield f"lm/{method}/0.9/{seed}", lambda m=method, seed=seed: language_run(m, 0.9, seed)
        for name, (task, run) in EXTRA.items():
            if name in rows:
                yield f"{name}/{task}/-/{seed}", lambda run=run, task=task, seed=seed: run(TASKS[task], seed)


def _image_jobs(task: Task, seed: int) -> Iterator[Job]:
    yield f"{task.name}/dense/0/{seed}", lambda: image_run(task, None, 0.0, seed)
    for sparsity in SPARSITIES:
        yield f"{task.name}/small dense/{sparsity}/{seed}", lambda s=sparsity: small_run(task, s, seed)
        for name, settings in METHODS.items():
            key = f"{task.name}/{name}/{sparsity}/{seed}"
            yield key, lambda settings=settings, sparsity=sparsity: image_run(task, settings, sparsity, seed)
    for sparsity in (0.98, 0.995, 0.999):
        for name in ("SNIP", "SynFlow"):
            key = f"{task.name}/{name}/{sparsity}/{seed}"
            yield key, lambda name=name, sparsity=sparsity: initialised_run(task, name, sparsity, seed)


def main() -> None:
    """Run what is missing, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = ["mlp", "conv", "lm", *EXTRA]
    parser.add_argument("--rows", nargs="+", choices=every, default=every)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, default=Path(__file__).with_name("results") / "sparse_quality.json")
    parser.add_argument("--print", action="store_true", help="only print what has been run")
    parser.add_argument("--docs", type=Path, help="a page that the tables go into")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    done: dict[str, Any] = json.loads(given.json.read_text()) if given.json.exists() else {}
    for name, run in [] if given.print else jobs(given.rows, given.seeds):
        if name in done:
            continue
        begun = time.perf_counter()
        done[name] = run()
        print(f"{name}: {done[name]}  {time.perf_counter() - begun:.0f} s", flush=True)
        partial = given.json.with_suffix(".partial")
        partial.write_text(json.dumps(done, indent=1) + "\n")
        os.replace(partial, given.json)
    print(tables(done))
    if given.docs:
        fill(given.docs, "sparse-quality", tables(done))


if __name__ == "__main__":
    main()

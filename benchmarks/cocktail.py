"""Sparse Cocktail: each network of one set of weights beside one that was trained for itself alone.

Alone means: masks of the same pattern and ratio, drawn by magnitude from the same dense training, on the same weights
that were rewound to, trained for one whole stage with every step its own. A convolutional network on Fashion-MNIST, one
on 8x8 digits, and a small decoder on the built-in text, whose accuracy is that of the next token. The plan comes first,
from an epoch that is timed here; what is finished stays: the same command goes on. ``--quick`` is one seed of digits
and decoder.

    python benchmarks/cocktail.py --dry-run
    python benchmarks/cocktail.py --rows digits --seeds 0 1 2
    python benchmarks/cocktail.py --table --docs docs/methods/notes/merger-sparse-cocktail.md
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pages import fill
from torch import Tensor, nn
from waiting import sleep_while_waiting

from lowdim.core.machine import machine
from lowdim.core.masks import Masks
from lowdim.core.pattern.nm import NM
from lowdim.core.random import generator
from lowdim.core.topk import keep_top, keep_top_across
from lowdim.data import classification
from lowdim.data.raw import Split
from lowdim.merge.trial import refreshed
from lowdim.models.small import nets
from lowdim.models.structure.selection import Weight
from lowdim.models.subnets import Subnet, Subnets
from lowdim.models.ticket import Ticket
from lowdim.train.compare.measure import answer
from lowdim.train.loop import Loop
from lowdim.train.pretrain.network import make
from lowdim.train.pretrain.prepare import prepare
from lowdim.train.pretrain.recipe import Pretraining
from lowdim.train.tickets.cocktail import SparseCocktail
from lowdim.train.tickets.pivot import Answer, Shown, classified, continued
from lowdim.train.tickets.unified import chosen, grouped

SEEDS, MOST = (0, 1, 2), 1.5
"""The second: points of accuracy that a network may lose against one trained for itself."""


@dataclass(frozen=True)
class Row:
    """A task, and how long a stage is."""

    cocktail: SparseCocktail
    epochs: int
    rewind: int
    make: Callable[[int], Task]


@dataclass(frozen=True)
class Task:
    """What a network is trained on."""

    model: Callable[[], nn.Module]
    batches: Callable[[int], list[Any]]
    optimizer: Callable[[nn.Module], torch.optim.Optimizer]
    answer: Answer
    validate: Callable[[nn.Module], float]
    test: Callable[[nn.Module], float]
    refresh: list[Any] | None = None


def images(name: str, channels: list[int], limit: int | None, seed: int) -> Task:
    """Return images, and a convolutional network with batch norm."""
    data = classification.load(name, validation=0.1, limit=limit, seed=seed)
    net = nets.parse({"name": "conv", "channels": channels})
    x, y = data.train.x, data.train.y

    def batches(epoch: int) -> list[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(x), generator=generator(seed, "cocktail", epoch))
        return [(x[part], y[part]) for part in order.split(128) if len(part) > 1]

    def accuracy(split: Split) -> Callable[[nn.Module], float]:
        return lambda model: answer(model, split).accuracy

    return Task(
        lambda: net.build(data, seed),
        batches,
        lambda model: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4),
        classified,
        accuracy(data.validation),
        accuracy(data.test),
        batches(0)[:8],
    )


def decoder(seed: int) -> Task:
    """Return sequences of the built-in text, and a decoder of two blocks."""
    sizes = {"hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 2, "num_attention_heads": 4}
    recipe = Pretraining(
        model={"name": "9m", "vocab_size": 320, **sizes}, data={"vocabulary": 320}, length=64, batch=32, seed=seed
    )
    prepared = prepare(recipe)
    rows = torch.cat([prepared.text.micro(range(start, start + 64)).ids for start in range(0, 1088, 64)])
    held = torch.cat([prepared.held.micro([row]).ids for row in range(min(64, len(prepared.held) - 1))])
    train, choose = rows[:960], rows[960:]

    def batches(epoch: int) -> list[Tensor]:
        return list(train[torch.randperm(len(train), generator=generator(seed, "cocktail", epoch))].split(32))

    def accuracy(ids: Tensor) -> Callable[[nn.Module], float]:
        @torch.no_grad()
        def measured(model: nn.Module) -> float:
            logits, labels = continued(model.eval(), ids)
            return float((logits.argmax(-1) == labels).double().mean())

        return measured

    return Task(
        lambda: make(recipe, prepared.config, None, torch.device("cpu"))[0],
        batches,
        lambda model: torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01),
        continued,
        accuracy(choose),
        accuracy(held),
    )


def made(stages: int, groups: tuple[str, ...]) -> SparseCocktail:
    """Return the paper's settings with fewer stages, and a coarser search."""
    return SparseCocktail(stages=stages, groups=groups, coefficients=(0.1, 0.3, 0.5, 0.7, 0.9))


ROWS: dict[str, Row] = {
    "digits": Row(made(6, ("1:2", "2:4")), 12, 2, lambda seed: images("digits", [16, 32, 32], None, seed)),
    "fashion": Row(made(6, ("1:2", "2:4")), 10, 1, lambda seed: images("fashion-mnist", [16, 32, 64], 12_000, seed)),
    "decoder": Row(made(3, ("2:4",)), 10, 1, decoder),
}
QUICK = ("digits", "decoder")


def own_masks(weights: tuple[Weight, ...], net: Subnet) -> dict[str, Tensor]:
    """Return masks of a network's pattern and ratio, drawn by magnitude from weights as they are now."""
    size = {name: net.masks.kept(name) for name in net.masks}
    scores = {w.name: w.parameter.detach().abs() for w in weights}
    if net.pattern == "unstructured":
        return keep_top_across(scores, sum(size.values()))
    if net.pattern != "channel":
        keep, group = map(int, net.pattern.split(":"))
        return {w.name: grouped(w, NM(keep, group)) for w in weights}
    found = {}
    for w in weights:
        axis = int(w.inputs_first)
        sums = scores[w.name].sum([dim for dim in range(w.parameter.ndim) if dim != axis])
        channels = keep_top(sums, size[w.name] * len(sums) // w.parameter.numel())
        shape = [-1 if dim == axis else 1 for dim in range(w.parameter.ndim)]
        found[w.name] = channels.view(shape).expand_as(w.parameter).clone()
    return found


def stage(row: Row, task: Task, model: nn.Module, first: int, masks: Mapping[str, Tensor], after: Any = None) -> None:
    """Train one stage, every step with the same masks."""

    def loss(network: nn.Module, batch: Any) -> Tensor:
        logits, labels = task.answer(Shown(network, masks) if masks else network, batch)
        return nn.functional.cross_entropy(logits, labels)

    done = 0
    loop = Loop(model, task.optimizer(model), loss=loss, schedule=lambda step: row.cocktail.rate(done / row.epochs))
    model.train()
    for epoch in range(row.epochs):
        loop.run(task.batches(first + epoch))
        done = epoch + 1
        if after is not None:
            after(done)


def alone(row: Row, task: Task, together: Subnets) -> dict[str, float]:
    """Return the test accuracy of each network where it is trained for itself."""
    model = task.model()
    weights, start = chosen(model, row.cocktail.patterns()), dict[str, Tensor]()

    def after(done: int) -> None:
        if done == row.rewind:
            start.update({name: tensor.detach().clone() for name, tensor in model.state_dict().items()})

    stage(row, task, model, 0, {}, after)
    masks = {name: own_masks(weights, net) for name, net in together.nets.items() if len(net.masks)}
    found = {"dense": tested(task, model, {})}
    for name, own in masks.items():
        model.load_state_dict(start)
        stage(row, task, model, row.epochs, own)
        found[name] = tested(task, model, own)
    return found


def tested(task: Task, model: nn.Module, masks: Mapping[str, Tensor]) -> float:
    """Return the test accuracy under a network's own norm statistics."""
    state = {name: tensor.clone() for name, tensor in Ticket.of(model, {}).state.items()}
    packed = Masks.from_dict(masks)
    packed.apply_(state)
    refreshed(model, Ticket(state, packed), task.validate, task.refresh, lambda net, batch: task.answer(net, batch)[0])
    return task.test(model)


def run(name: str, seed: int) -> dict[str, Any]:
    """Train both, and return what was measured."""
    row = ROWS[name]
    task = row.make(seed)
    model, begun = task.model(), time.perf_counter()
    together = row.cocktail.train(
        model,
        task.batches,
        task.optimizer,
        epochs=row.epochs,
        rewind=row.rewind,
        answer=task.answer,
        validate=task.validate,
        refresh=task.refresh,
    )
    seconds = time.perf_counter() - begun
    own = alone(row, task, together)
    found = []
    for each, net in together.nets.items():
        together.apply_(model, each)
        accuracy = task.test(model.eval())
        found.append({"net": each, "zeros": net.sparsity, "together": accuracy, "alone": own[each]})
    return {"row": name, "seed": seed, "seconds": seconds, "nets": found}


def table(results: list[dict[str, Any]]) -> str:
    """Return all networks as Markdown, and how many are within the bound."""
    lines = ["| task | seed | network | zeros | together | alone | points |", f"|{'---|' * 7}"]
    within = total = 0
    for found in results:
        for net in found["nets"]:
            points = 100 * (net["together"] - net["alone"])
            within, total = within + (points >= -MOST), total + 1
            lines.append(
                f"| {found['row']} | {found['seed']} | {net['net']} | {net['zeros']:.0%} | {net['together']:.1%} | "
                f"{net['alone']:.1%} | {points:+.1f} |"
            )
    return "\n".join([*lines, "", f"{within} of {total} networks are within {MOST} points of one trained for itself."])


def hours(name: str) -> float:
    """Return the hours of a run, from one epoch that is timed here: stages, alone, and the search counted as epochs."""
    row = ROWS[name]
    task = row.make(0)
    model, networks = task.model(), 3 * row.cocktail.stages
    loop = Loop(
        model, task.optimizer(model), loss=lambda net, batch: nn.functional.cross_entropy(*task.answer(net, batch))
    )
    part = task.batches(0)
    begun = time.perf_counter()
    loop.run(part[: max(1, len(part) // 8)])
    epoch = 8 * (time.perf_counter() - begun)
    stages = (row.cocktail.stages + 1) * row.epochs * 1.2 + (networks + 1) * row.epochs
    search = len(row.cocktail.coefficients) * sum(2 * t + 2 for t in range(2, row.cocktail.stages + 1)) * 0.15
    return epoch * (stages + search) / 3600


def main() -> None:
    """Print the plan, run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--quick", action="store_true", help="digits and decoder on one seed")
    parser.add_argument("--json", type=Path, default=Path("runs/cocktail.json"))
    parser.add_argument("--docs", type=Path, help="page that the table goes into")
    parser.add_argument("--table", action="store_true", help="print what was measured, and run nothing")
    parser.add_argument("--dry-run", action="store_true")
    given = parser.parse_args()
    results: list[dict[str, Any]] = json.loads(given.json.read_text())["runs"] if given.json.exists() else []
    rows, seeds = (QUICK, [0]) if given.quick else (given.rows, given.seeds)
    done = {(found["row"], found["seed"]) for found in results}
    jobs = [] if given.table else [(row, seed) for row in rows for seed in seeds if (row, seed) not in done]
    each = {row: hours(row) for row in dict.fromkeys(row for row, _ in jobs)}
    for row, took in each.items():
        print(
            f"{row}: {ROWS[row].cocktail.stages + 1} stages of {ROWS[row].epochs} epochs, about {took:.2f} h",
            flush=True,
        )
    print(
        f"{len(jobs)} runs, {len(done)} measured already; about {sum(each[row] for row, _ in jobs):.2f} hours",
        flush=True,
    )
    if given.dry_run:
        return
    given.json.parent.mkdir(parents=True, exist_ok=True)
    for row, seed in jobs:
        results.append(run(row, seed))
        given.json.write_text(json.dumps({"machine": machine(), "runs": results}, indent=1) + "\n")
        print(table(results[-1:]), flush=True)
    if results:
        print(table(results))
        if given.docs:
            fill(given.docs, "cocktail", table(results))


if __name__ == "__main__":
    sleep_while_waiting()
    main()

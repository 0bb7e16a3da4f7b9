"""Rows of `lowmemory.py` that train: a miniature from scratch by every method, and layers of the embedded model."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pretrain
import torch
from lowmemory_state import Ratio, resident
from torch import Tensor, nn

import lowdim
from lowdim.core.random import generator
from lowdim.data import questions
from lowdim.data.windows import windows
from lowdim.evaluate.quality.zeroshot import evaluate_tasks
from lowdim.models.disk.source import resolve
from lowdim.models.load import load, read_tokenizer
from lowdim.nn.blocks import find_blocks
from lowdim.nn.lowrank import LowRankLinear, factorise_, put
from lowdim.train.loop import Loop
from lowdim.train.lowrank.uniform import UniformRank
from lowdim.train.nm.from_scratch import SparseFromScratch
from lowdim.train.nm.fst import FST
from lowdim.train.nm.s_ste import SSTE
from lowdim.train.nm.sr_ste import SRSTE
from lowdim.train.optimizers.adam import AdamW
from lowdim.train.optimizers.apollo import APOLLO
from lowdim.train.optimizers.base import OptimizerRule
from lowdim.train.optimizers.galore import GaLore
from lowdim.train.optimizers.q_galore import QGaLore
from lowdim.train.pretrain import network
from lowdim.train.pretrain.goal import NextToken
from lowdim.train.pretrain.prepare import prepare
from lowdim.train.pretrain.run import Run
from lowdim.train.riders.layer_sampling import LayerSampling
from lowdim.train.riders.lisa import LISA
from lowdim.train.riders.ows import OWS
from lowdim.train.riders.sampling import Sampling

BLOCKS, RATE = 12, 2e-3
RANK = pretrain.WIDTH // 4
Q = {"rank": RANK, "lr": 0.015, "projector": "power"}
METHODS: dict[str, dict[str, Any]] = {
    "full": {},
    "galore": {"optimizer": GaLore(rank=RANK, lr=0.01)},
    "q-galore": {"optimizer": QGaLore(**Q)},
    "q-galore-nearest": {"optimizer": QGaLore(**Q, stochastic=False)},
    "apollo": {"optimizer": APOLLO(rank=RANK, lr=0.01)},
    "lora": {"factors": "lora"},
    "factorised": {"factors": "product"},
    "dense": {"sparse": FST(every=10, decay=0.0, tail=1.0, mvue=False)},
    "ste": {"sparse": SRSTE(every=1, decay=0.0)},
    "sr-ste": {"sparse": SRSTE(every=1, decay=2e-4)},
    "lisa": {"sampling": LISA(active=4, every=10)},
    "ows": {"sampling": OWS(active=4, every=10, m=5)},
    "fst": {"sparse": FST(every=10)},
    "s-ste": {"sparse": SSTE(every=10)},
}
"""By row: the optimizer of all weights, what matrices are made of, which blocks train, or what 2:4 is trained by."""
TASKS = ("arc_easy", "openbookqa")
LAYERS = ("ows", "lisa", "lora", "full")


def minutes(steps: int) -> float:
    """Return about how many minutes a run of the miniature takes: 0.55 s a step of two idle cores."""
    return round(0.55 * steps / 60, 1)


class Added(nn.Module):
    """A frozen layer as it was drawn, and a product beside it: LoRA from the first step."""

    def __init__(self, layer: nn.Linear, rank: int) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.beside = LowRankLinear(layer.in_features, layer.out_features, rank, bias=False)
        nn.init.zeros_(self.beside.a)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the sum of both."""
        out: torch.Tensor = self.layer(x) + self.beside(x)
        return out


def linears(model: nn.Module) -> dict[str, nn.Linear]:
    """Return the linear layers of a model's blocks, by name."""
    prefix, blocks = find_blocks(model)
    return {f"{prefix}.{n}": m for n, m in blocks.named_modules() if isinstance(m, nn.Linear)}


def run(name: str) -> Callable[[argparse.Namespace, int], dict[str, Any]]:
    """Return what trains the miniature by a method and measures it."""

    def measure(given: argparse.Namespace, seed: int) -> dict[str, Any]:
        return trained(METHODS[name], given, seed)

    return measure


def trained(settings: dict[str, Any], given: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Train the miniature of `pretrain.py`; return the loss on held-out text, and the flip rates of masks."""
    recipe = pretrain.recipe(pretrain.Job("Pre-LN", BLOCKS, RATE, seed), given.text, given.steps, given.batch)
    prepared = prepare(recipe)
    model, copies = network.make(recipe, prepared.config, None, prepared.device)
    layers = linears(model)
    if settings.get("factors") == "product":
        factorise_(model, UniformRank().of(model, list(layers), 0.25))
    for path, layer in layers.items() if settings.get("factors") == "lora" else ():
        put(model, path, Added(layer, RANK))
    rule: OptimizerRule = settings.get("optimizer") or AdamW(lr=RATE, weight_decay=pretrain.DECAY)
    optimizer = rule.build(model)
    run_ = Run(prepared, model, optimizer, [], copies, NextToken(), "Train")
    sparse = None
    if settings.get("sparse"):
        chosen = {name: layer for name, layer in layers.items() if ".mlp." in name}
        sparse = SparseFromScratch(chosen, settings["sparse"], optimizer, given.steps, seed=seed)
        run_.loop = Loop(
            model,
            optimizer,
            loss=run_._loss,
            clip=recipe.clip,
            projected=sparse.projections(),
            schedule=lambda step: recipe.factor(step, given.steps),
            riders=[sparse],
            size=lambda micro: micro.counted,
        )
    if settings.get("sampling"):
        sampling: Sampling = settings["sampling"]
        seen = [{"input_ids": micro.ids, "labels": micro.targets} for micro in run_.batches.step(0)]
        run_.loop.riders = (
            *run_.loop.riders,
            LayerSampling(model, optimizer, sampling, data=seen if sampling.measures else None, seed=seed),
        )
    for index in range(given.steps):
        run_.loop.run(run_.batches.step(index))
    loss = run_.judge()["loss"]
    flips = [choice["flip_rate"] for choice in sparse.history] if sparse else []
    ratios: list[Ratio] = [("validation loss", loss, "", 0)]
    ratios += [("flip rate, first choice", flips[0], "", 0), ("the same, last", flips[-1], "", 0)] if flips else []
    return {"loss": loss, "flips": flips[:: max(1, len(flips) // 20)], "steps": given.steps, "ratios": ratios}


def layers(task: str, name: str) -> Callable[[argparse.Namespace, int], dict[str, Any]]:
    """Return what trains the embedded model on a task, in a process of its own, and measures it."""

    def measure(given: argparse.Namespace, seed: int) -> dict[str, Any]:
        here = str(Path(__file__).parent)
        call = f"lowmemory_loss.tuned({task!r}, {name!r}, {given.tokens}, {given.windows}, {seed})"
        script = f"import sys, json; sys.path.insert(0, {here!r}); import lowmemory_loss; print(json.dumps({call}))"
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
        ratios: list[Ratio] = [(what, found[what], "", 0) for what in ("accuracy", "perplexity", "peak_mb")]
        return {**found, "ratios": ratios}

    return measure


def tuned(task: str, name: str, tokens: int, limit: int, seed: int) -> dict[str, Any]:
    """Train on the answers of a task's validation split; return accuracy, perplexity of Wikipedia, and peak memory."""
    path = resolve("builtin:smollm2-135m").path
    tokenizer, model = read_tokenizer(path), load(path, torch.bfloat16).train()
    before = resident("VmRSS") - sum(p.nbytes for p in model.parameters())
    if name == "lora":
        model.requires_grad_(False)
        for place, layer in linears(model).items():
            put(model, place, Added(layer, 16).bfloat16())
    trained_ = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained_, lr=2e-4 if name == "lora" else 1e-5, fused=True)
    batches = list(_batches(task, tokenizer, tokens, seed))
    samplings: dict[str, Sampling] = {"ows": OWS(active=2, every=10), "lisa": LISA(active=2, every=10)}
    riders = []
    if name in samplings:
        seen = [{"input_ids": ids, "labels": labels} for ids, labels in batches[:4]]
        sampling = samplings[name]
        riders = [LayerSampling(model, optimizer, sampling, data=seen if sampling.measures else None, seed=seed)]
    loop = Loop(model, optimizer, loss=lambda m, both: m(input_ids=both[0], labels=both[1]).loss, riders=riders)
    loop.run(batches)
    peak = resident("VmHWM") - before
    model.eval()
    text = windows("builtin", tokenizer, 512, limit=limit)
    result = evaluate_tasks(model, tokenizer, [task], limit=300)[task]
    perplexity = lowdim.perplexity(model, text).value
    return {"accuracy": result.value, "stderr": result.stderr, "perplexity": perplexity, "peak_mb": peak / 2**20}


def _batches(task: str, tokenizer: Any, tokens: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield token ids of eight questions with their answers, padded behind, and labels of the answers alone."""
    asked = questions.documents(task)
    order = torch.randperm(len(asked), generator=generator(seed, "order")).tolist()
    for step in range(max(1, tokens // (8 * 32))):  # a question has some 32 tokens
        pairs = []
        for place in range(8):
            each = asked[order[(8 * step + place) % len(order)]]
            head = tokenizer(f"Question: {each.question}\nAnswer:").input_ids
            pairs.append((head, tokenizer(f" {each.answer}").input_ids))
        width = max(len(head) + len(tail) for head, tail in pairs)
        ids, labels = torch.zeros(8, width, dtype=torch.int64), torch.full((8, width), -100)
        for row, (head, tail) in enumerate(pairs):
            ids[row, : len(head) + len(tail)] = torch.tensor(head + tail)
            labels[row, len(head) : len(head) + len(tail)] = torch.tensor(tail)
        yield ids, labels

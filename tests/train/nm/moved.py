"""What the ranks of a run with moving masks do: started by `torch.multiprocessing`, they write what they saw."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from tests.train.gloo import joined
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers.pytorch_utils import Conv1D

from lowdim.core.pattern import NM, Pattern, Unstructured
from lowdim.nn.slorb import add_slorb
from lowdim.train.loop import Loop
from lowdim.train.nm.adaptive import AdaptiveMasks
from lowdim.train.nm.ast import AST

STEPS, BATCH = 8, 12
PATTERNS: list[Pattern] = [NM(2, 4), Unstructured("row"), Unstructured("matrix")]
SETTINGS = AST(decay=0.02, every=2)
TURNED = "2.weight"
Found = dict[str, Any]


def net() -> nn.Sequential:
    """Return a network whose shards are uneven, cut through groups of four, or empty (two rows on three ranks)."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 20), nn.Tanh(), Conv1D(16, 20), nn.Tanh(), nn.Linear(16, 2))


def data(step: int) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(step)
    return torch.randn(BATCH, 8, generator=source), torch.randint(2, (BATCH,), generator=source)


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def drawn(model: nn.Module, pattern: Pattern) -> dict[str, Tensor]:
    masks = {}
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            scores = parameter.detach().abs().t() if name == TURNED else parameter.detach().abs()
            mask = pattern.mask(scores, scores.numel() // 2)
            masks[name] = mask.t().contiguous() if name == TURNED else mask
    return masks


def begun(pattern: Pattern, wrap: Callable[[nn.Module], nn.Module]) -> tuple[Loop, AdaptiveMasks]:
    model = net()
    masks = drawn(model, pattern)
    add_slorb(model, {"0": masks["0.weight"]}, 4, trains_p=True)
    wrapped = wrap(model)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.3, momentum=0.9)
    parameters = {name: parameter for name, parameter in model.named_parameters() if name in masks}
    moving = AdaptiveMasks(parameters, masks, pattern, SETTINGS, optimizer, STEPS, transposed={TURNED})
    loop = Loop(wrapped, optimizer, loss=loss, clip=1.0, projected=moving.projections(), riders=[moving])
    return loop, moving


def walk(loop: Loop, moving: AdaptiveMasks, part: slice, steps: range) -> Found:
    losses, hashes = [], []
    for step in steps:
        x, y = data(step)
        losses.append(loop.run([(x[part], y[part])]))
        hashes.append(moving.masks.hash())
    return {"losses": losses, "hashes": hashes, "history": moving.history}


def run(pattern: Pattern, part: slice, wrap: Callable[[nn.Module], nn.Module] = lambda model: model) -> Found:
    return walk(*begun(pattern, wrap), part, range(STEPS))


def sharded(model: nn.Module) -> nn.Module:
    for layer in model.children():
        if any(True for _ in layer.parameters()):
            fully_shard(layer)
    return fully_shard(model)


def resumed(pattern: Pattern, part: slice) -> Found:
    """Stop a sharded run halfway, and go on in a new one."""
    loop, moving = begun(pattern, sharded)
    first = walk(loop, moving, part, range(STEPS // 2))
    state = deepcopy(loop.state_dict())
    again, masks = begun(pattern, sharded)
    again.load_state_dict(state)
    rest = walk(again, masks, part, range(STEPS // 2, STEPS))
    return {key: first[key] + rest[key] for key in ("losses", "hashes")} | {"history": rest["history"]}


def main(rank: int, size: int, home: str) -> None:
    part = slice(rank * BATCH // size, (rank + 1) * BATCH // size)
    found = {}
    with joined(rank, size, home):
        for pattern in PATTERNS:
            found[f"ddp-{pattern!r}"] = run(pattern, part, DistributedDataParallel)
            found[f"fsdp-{pattern!r}"] = run(pattern, part, sharded)
        found["resumed"] = resumed(PATTERNS[0], part)
    (Path(home) / f"{rank}.json").write_text(json.dumps(found))

"""What the ranks of a sparse training run do: started by `torch.multiprocessing`, they write what they saw to files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tests.train.gloo import joined
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from lowdim.core.errors import LowdimError
from lowdim.train import CTRE, ITOP, SET, GraNet, KeepZeros, RigL, SparseTraining
from lowdim.train.sparse.method import Method

METHODS: list[Method] = [
    SET(every=2),
    RigL(every=2),
    ITOP(every=2, grow="unfired"),
    GraNet(every=2, until=0.6),
    CTRE(every=2),
]
STEPS, BATCH = 8, 12


def model(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(10, 18), nn.ReLU(), nn.Linear(18, 14), nn.ReLU(), nn.Linear(14, 3))


def data(step: int) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(step)
    return torch.randn(BATCH, 10, generator=source), torch.randint(3, (BATCH,), generator=source)


def run(net: nn.Module, method: Method, part: slice, first: bool) -> dict[str, Any]:
    """Train on a part of each batch; return what all ranks must agree on."""
    training = None
    if first:  # masks first, wrapper second, as some people have it
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
        training = SparseTraining(net, optimizer, sparsity=0.7, method=method, total_steps=STEPS)
    if dist.is_initialized():
        net = DistributedDataParallel(net)
    if training is None:
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
        training = SparseTraining(net, optimizer, sparsity=0.7, method=method, total_steps=STEPS)
    return loop(net, training, part)


def loop(net: nn.Module, training: SparseTraining, part: slice) -> dict[str, Any]:
    hashes = []
    for step in range(STEPS):
        x, y = data(step)
        nn.functional.cross_entropy(net(x[part]), y[part]).backward()
        training.optimizer.step()
        training.optimizer.zero_grad()
        hashes.append(training.masks.hash())
    return {"hashes": hashes, "explored": training.explored(), "sparsity": training.sparsity()}


def sharded(method: Method, part: slice) -> dict[str, Any]:
    net = model(0)
    for layer in net:
        if isinstance(layer, nn.Linear):
            fully_shard(layer)
    fully_shard(net)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    training = SparseTraining(net, optimizer, sparsity=0.7, method=method, total_steps=STEPS)
    found = loop(net, training, part)
    for layer in training.layers:
        weight = layer.parameter.detach().full_tensor()
        assert not weight[~layer.mask()].any()
    state = training.state_dict()
    training.load_state_dict(state)
    return found


def kept(part: slice, shard: bool) -> dict[str, Any]:
    """Fine-tune a pruned network, and keep its zeros."""
    net = model(0)
    for i, layer in enumerate(layer for layer in net if isinstance(layer, nn.Linear)):
        layer.weight.data[torch.rand(layer.weight.shape, generator=torch.Generator().manual_seed(i)) < 0.5] = 0.0
    before = sum(int((p == 0).sum()) for p in net.parameters())
    wrong = {"2.weight": torch.zeros(14, 18).bool()}
    if shard:
        for layer in net:
            fully_shard(layer) if isinstance(layer, nn.Linear) else None
    wrapped: nn.Module = fully_shard(net) if shard else DistributedDataParallel(net)
    optimizer = torch.optim.AdamW(wrapped.parameters(), lr=0.01, weight_decay=0.1)
    try:
        KeepZeros(wrapped, optimizer, wrong)
    except LowdimError as error:
        said = str(error)
    keep = KeepZeros(wrapped, optimizer)
    found = loop(wrapped, keep, part)
    weights = [layer.parameter.detach() for layer in keep.layers]
    whole = [w.full_tensor() if shard else w for w in weights]  # type: ignore[attr-defined]
    zeros = sum(int((w == 0).sum()) for w in whole)
    return {
        **found,
        "said": said,
        "before": before,
        "zeros": zeros,
        "total": float(sum(w.double().sum() for w in whole)),
    }


def main(rank: int, size: int, home: str) -> None:
    part = slice(rank * BATCH // size, (rank + 1) * BATCH // size)
    found = {}
    with joined(rank, size, home):
        for method in METHODS:
            name = type(method).__name__
            for first in (False, True):
                # ranks start from different weights; the wrapper sends those of rank 0 to all
                found[f"ddp-{name}-{first}"] = run(model(rank), method, part, first)
            found[f"fsdp-{name}"] = sharded(method, part)
        found["keep-ddp"], found["keep-fsdp"] = kept(part, False), kept(part, True)
    (Path(home) / f"{rank}.json").write_text(json.dumps(found))

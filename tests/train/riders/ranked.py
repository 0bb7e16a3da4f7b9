"""What the ranks of a placed model in training do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tests.nn.placement.decoders import decoder
from tests.train.gloo import joined
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from lowdim.core.recipe.families import build
from lowdim.train.riders.alphadecay import AlphaDecay
from lowdim.train.riders.prores import ResidualWarmup
from lowdim.train.riders.spectral import SpectralDecay

PLACEMENTS: dict[str, Any] = {
    "mix": {"name": "mix-ln", "alpha": 0.5},
    "sandwich": {"name": "gpas", "over": "sandwich"},
    "prores": {"name": "prores", "steps": 1, "over": {"name": "gpas", "over": "lns"}},
    "decay": "pre-ln",
}
STEPS, BATCH = 3, 4


def run(kind: str, wrap: str, part: slice) -> list[float]:
    """Train a little on a part of each batch; return the loss of every step on the whole of it, and decays."""
    model: nn.Module = decoder("llama")
    build("placement", PLACEMENTS[kind]).apply_(model)
    if wrap == "ddp":
        model = DistributedDataParallel(model)
    elif wrap == "fsdp":
        for block in model.model.layers:  # type: ignore[union-attr]
            fully_shard(block)  # type: ignore[arg-type]
        fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    if kind == "prores":
        ResidualWarmup(model, optimizer)
    decay = SpectralDecay(model, optimizer, AlphaDecay(every=2, least=16)) if kind == "decay" else None
    losses = []
    for step in range(STEPS):
        ids = torch.randint(64, (BATCH, 8), generator=torch.Generator().manual_seed(step))
        _loss(model, ids[part]).backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            losses.append(_loss(model, ids).item())
    return losses if decay is None else [*losses, *decay.ratios.values()]


def _loss(model: nn.Module, ids: Tensor) -> Tensor:
    found: Tensor = model(ids, labels=ids, use_cache=False).loss
    return found


def main(rank: int, size: int, home: str) -> None:
    part = slice(rank * BATCH // size, (rank + 1) * BATCH // size)
    with joined(rank, size, home):
        found = {f"{kind}-{wrap}": run(kind, wrap, part) for kind in PLACEMENTS for wrap in ("ddp", "fsdp")}
    (Path(home) / f"{rank}.json").write_text(json.dumps(found))

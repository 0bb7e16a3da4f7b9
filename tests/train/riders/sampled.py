"""A model of blocks, and the ranks that sample them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tests.train.gloo import joined
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from lowdim.train.riders.layer_sampling import LayerSampling
from lowdim.train.riders.lisa import LISA

STEPS, BATCH, BLOCKS = 8, 8, 4


class Net(nn.Module):
    """Residual blocks between an embedding and a head."""

    def __init__(self, checkpointed: bool | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(11, 6)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 6)) for _ in range(BLOCKS))
        self.head, self.checkpointed = nn.Linear(6, 11), checkpointed
        self.hook: Any = None

    def get_input_embeddings(self) -> nn.Module:
        return self.table

    def enable_input_require_grads(self) -> None:
        self.hook = self.table.register_forward_hook(lambda module, given, found: found.requires_grad_(True))

    def disable_input_require_grads(self) -> None:
        self.hook.remove()
        self.hook = None

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        for layer in self.layers:
            kept = self.checkpointed is not None
            x = x + (checkpoint(layer, x, use_reentrant=self.checkpointed) if kept else layer(x))
        return self.head(x)  # type: ignore[no-any-return]


def data(step: int) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(step)
    return torch.randint(11, (BATCH,), generator=source), torch.randint(11, (BATCH,), generator=source)


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=0.1)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range, part: slice = slice(None)) -> None:
    for step in steps:
        x, y = data(step)
        loss(model, (x[part], y[part])).backward()
        optimizer.step()
        optimizer.zero_grad()


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def ranked(rank: int, size: int, home: str) -> None:
    part, found = slice(rank * BATCH // size, (rank + 1) * BATCH // size), dict[str, Any]()
    with joined(rank, size, home):
        model = DistributedDataParallel(Net(), find_unused_parameters=True)
        optimizer = adamw(model)
        sampling = LayerSampling(model, optimizer, LISA(active=2, every=2))
        train(model, optimizer, range(STEPS), part)
        found["weights"], found["history"] = weights(model).tolist(), sampling.history
        for name, wrapped in (("ddp", DistributedDataParallel(Net())), ("fsdp", fully_shard(Net()))):
            try:
                LayerSampling(wrapped, adamw(wrapped), LISA())
            except ValueError as error:
                found[name] = str(error)
    (Path(home) / f"{rank}.json").write_text(json.dumps(found))

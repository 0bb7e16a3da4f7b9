"""What the ranks of a training loop do: started by `torch.multiprocessing`."""

from __future__ import annotations

from typing import Any

import torch
from tests.train.gloo import joined
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lowdim.train import RigL, SparseTraining
from lowdim.train.loop import Loop

# examples in the batches of each of two ranks; the second has no fifth batch, so neither takes a third step
SIZES = ([3, 4, 5, 2, 6, 6], [7, 1, 2, 5])


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3))


def loss(model: nn.Module, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def batch(size: int, *seed: int) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(sum(100**place * part for place, part in enumerate(seed)))
    return torch.randn(size, 6, generator=source), torch.randint(3, (size,), generator=source)


def data(rank: int) -> list[tuple[Tensor, Tensor]]:
    return [batch(size, rank, place) for place, size in enumerate(SIZES[rank])]


def made(model: nn.Module, **settings: Any) -> Loop:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    training = SparseTraining(
        model, optimizer, sparsity=0.5, method=RigL(every=2), total_steps=10, include=["0.weight"]
    )
    return Loop(model, optimizer, loss=loss, riders=[training], **settings)


def narrow(model: nn.Module) -> Loop:
    """Return a loop over fp32 copies of weights in bfloat16."""
    return Loop(
        model,
        torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9),
        loss=lambda net, batch: loss(net, (batch[0].bfloat16(), batch[1])),
        master=True,
    )


def main(rank: int, home: str) -> None:
    with joined(rank, 2, home):
        half = net().bfloat16()
        narrow(DistributedDataParallel(half)).run(data(rank)[:4])
        model = net()
        loop = made(DistributedDataParallel(model), accumulate=2)
        mean = loop.run(data(rank))
        masks = loop.state_dict()["riders"][0]["masks"]
        found = {
            "mean": mean,
            "step": loop.step,
            "model": model.state_dict(),
            "masks": masks,
            "half": half.state_dict(),
        }
        torch.save(found, f"{home}/{rank}.pt")

"""What two ranks do with tickets of a sharded model: started by `torch.multiprocessing`."""

from __future__ import annotations

import datetime

import torch
import torch.distributed as dist
from tests.models.tickets import mlp
from torch.distributed.fsdp import fully_shard

from lowdim.merge.ensemble import ensemble
from lowdim.models.ticket import Ticket
from lowdim.train import SET, SparseTraining
from lowdim.train.tickets.collect import TicketCollector
from lowdim.train.tickets.freetickets import FreeTickets


def main(rank: int, home: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{home}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=datetime.timedelta(minutes=5))
    try:
        torch.manual_seed(0)
        model = mlp()
        fully_shard(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        training = SparseTraining(model, optimizer, sparsity=0.5, method=SET(every=3), total_steps=12, include=["*"])
        collector = TicketCollector(training, FreeTickets(tickets=2, explore=0.0).plan(12))
        source = torch.Generator().manual_seed(1)
        for _ in range(12):
            x, y = torch.randn(8, 6, generator=source), torch.randint(0, 3, (8,), generator=source)
            torch.nn.functional.cross_entropy(model(x[4 * rank :][:4]), y[4 * rank :][:4]).backward()
            optimizer.step()
            optimizer.zero_grad()
            collector.step()
        result = ensemble(model, collector.tickets, [(x, y)])
        plain = mlp()
        assert torch.equal(result.probabilities, ensemble(plain, collector.tickets, [(x, y)]).probabilities)
        last = collector.tickets[-1]
        again = Ticket.of(model, training.masks)
        assert all(torch.equal(again.state[name], last.state[name]) for name in last.state)
        for index, ticket in enumerate(collector.tickets):
            ticket.save(f"{home}/{index}-{rank}")
    finally:
        dist.destroy_process_group()

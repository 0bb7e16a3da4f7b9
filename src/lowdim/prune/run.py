"""A whole run: dense pass and allocation, then block by block, each one durable before the next."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lowdim.core.allocation import AllocationResult
from lowdim.core.progress import Progress
from lowdim.data.batch import Batch
from lowdim.models import ranks
from lowdim.models.disk.packed import Packed
from lowdim.models.walk.calls import Activation
from lowdim.prune.budgets import budgets
from lowdim.prune.engine import Engine
from lowdim.prune.keeper import BlockRecord, Keeper, record_block
from lowdim.prune.scan import allocate
from lowdim.prune.session import Session
from lowdim.prune.walk import prune_block


def settle_allocation(
    session: Session, batches: Sequence[Batch], keeper: Keeper | None, progress: Progress
) -> AllocationResult:
    """Return every layer's sparsity, from an earlier attempt at the same run if there was one."""
    found = keeper.recall("allocation") if keeper else None
    if found is not None:
        return AllocationResult(found["sparsities"], found["values"])
    made = ranks.broadcast(allocate(session, batches, progress))
    if keeper:
        keeper.remember("allocation", {"sparsities": dict(made.sparsities), "values": dict(made.values)})
    return made


@torch.no_grad()
def prune_blocks(
    session: Session,
    allocation: AllocationResult,
    batches: Sequence[Batch],
    keeper: Keeper | None,
    progress: Progress,
    rounded: dict[str, Packed] | None = None,
) -> dict[int, BlockRecord]:
    """Prune every block in order and return the records.

    A block that an interrupted run has finished is read back, as it was written, and only run to feed the next one.
    Without a keeper, the codes of what was rounded go to ``rounded``.
    """
    stream, recipe = session.stream, session.recipe
    plan = budgets(session.layers, allocation.sparsities, recipe.legal)
    targets = {info.name: 1 - plan[info.name].keep / (info.rows * info.cols) for info in session.layers}
    engine = Engine(recipe, plan, session.gradients)
    records = keeper.blocks() if keeper else {}
    last = max((info.block for info in session.layers), default=-1)
    activations: list[Activation] = stream.capture(batches) if engine.needs and len(records) <= last else []
    written = keeper.reader() if keeper and records else None
    with progress.stage("Prune", len(stream), "blocks") as stage:
        for index in range(len(stream)):
            done = index in records
            if not done or (activations and index < last):
                with stream.block(index, written if done else None) as block:
                    if not done:
                        outcomes = prune_block(engine, block, activations, session.config)
                        records[index], pruned = record_block(session, block, outcomes, targets, recipe.grid)
                        if keeper:
                            keeper.write_block(block, records[index], pruned)
                        elif rounded is not None:
                            rounded |= {n: made for n, made in pruned.items() if isinstance(made, Packed)}
                    if index < last:
                        for activation in activations:
                            block.advance(activation)
            stage.advance(1)
    return records

"""What sparse training costs, in arithmetic and memory, and what its result costs: counts, not timings."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lowdim.core.lazy import torch
from lowdim.core.settings import Settings, within
from lowdim.evaluate.cost import flops
from lowdim.evaluate.cost.flops import Schedule

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lowdim.evaluate.cost.memory import Memory, Storage


@dataclass(frozen=True)
class CostReport:
    """What a run cost and what its result costs, each beside the dense network.

    Attributes:
        training_flops: of the run.
        dense_training_flops: of as many steps of the dense network.
        inference_flops: of one forward pass at the end.
        dense_inference_flops: of one forward pass of the dense network.
        training_memory: peak over the schedule, by storage: "dense", "masked", "sparse".
        inference_memory: at the end, by storage.
        uncounted: parameters whose products are not in the FLOPs.
    """

    training_flops: float
    dense_training_flops: float
    inference_flops: float
    dense_inference_flops: float
    training_memory: dict[Storage, Memory]
    inference_memory: dict[Storage, Memory]
    uncounted: tuple[str, ...]


@dataclass(frozen=True)
class Cost(Settings):
    """FLOPs and peak memory of sparse training, integrated over its densities; training and inference apart.

    These are counts, not timings, and a masked dense layer saves nothing of either: the FLOPs, and the
    memory called "sparse", are those of an executor that stores and multiplies kept weights alone.

    Args:
        state: tensors that the optimizer holds per weight: 0 for plain SGD, 1 with momentum, 2 for Adam.

    Paper: "Rigging the Lottery: Making All Tickets Winners", arXiv 1911.11134.

    Example:
        >>> import torch
        >>> probe = Cost(state=1)
        >>> found = probe.measure(torch.nn.Linear(10, 10), torch.zeros(1, 10), [(0, {"weight": 10})], steps=10)
        >>> found.training_flops / found.dense_training_flops
        0.1
        >>> found.training_memory["masked"].masks, found.training_memory["dense"].weights
        (100, 440)
    """

    state: int = within(2, least=0, whole=True, why="optimizer tensors per weight")

    def measure(
        self,
        model: nn.Module,
        example: Tensor | tuple[Any, ...],
        schedule: Schedule,
        steps: int,
        *,
        dense_gradients: Collection[int] = (),
        batch: int = 1,
    ) -> CostReport:
        """Return the cost of a run; see `lowdim.evaluate.cost.flops` and `lowdim.evaluate.cost.memory`.

        Args:
            model: dense, masked or not, in the mode it trains in (which decides what the backward pass needs).
            example: a batch of one, as the model is called with it.
            schedule: (step, kept weights by name), from step 0 on.
            steps: of the run.
            dense_gradients: steps whose weight gradient is dense.
            batch: examples a step.

        Raises:
            EvaluationError: as `lowdim.evaluate.cost.flops.training_flops`.
        """
        from lowdim.evaluate.cost import memory as held

        inputs = example if isinstance(example, tuple) else (example,)
        cost = flops.count(model, *inputs)
        spent = flops.training_flops(cost, schedule, steps, dense_gradients=dense_gradients, batch=batch)
        last = schedule[-1][1]
        two, three = (
            held.saved_bytes(model, *(torch.cat([x] * n) if isinstance(x, torch.Tensor) else x for x in inputs))
            for n in (2, 3)  # one is too few for batch norm
        )
        saved, live = two + (batch - 2) * (three - two), held.live_bytes(model, *inputs)
        peaks = {
            storage: max(
                (held.training_memory(model, kept, storage, self.state, saved) for _, kept in schedule),
                key=lambda memory: memory.total,
            )
            for storage in held.STORAGES
        }
        return CostReport(
            training_flops=spent,
            dense_training_flops=3.0 * cost.flops() * steps * batch,
            inference_flops=cost.flops(last),
            dense_inference_flops=cost.flops(),
            training_memory=peaks,
            inference_memory={s: held.inference_memory(model, last, s, live) for s in held.STORAGES},
            uncounted=cost.uncounted,
        )

"""The training loop: batches in, optimizer steps out, and a state from which training resumes to the same bytes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from lowdim.core.errors import CheckpointError, LowdimError
from lowdim.core.settings import Range, check
from lowdim.models import ranks
from lowdim.train.sparse.distributed import full, local, ranks_agree


class Kept(Protocol):
    """Whatever rides along with a loop and is saved with it: a ``SparseTraining``, a ``TicketCollector``."""

    def state_dict(self) -> dict[str, Any]:
        """Return what is needed to go on."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a ``state_dict``."""


def examples(batch: Any) -> int:
    """Return the rows of a batch: of a tensor, or of the first tensor in a tuple, a list or a mapping."""
    while not isinstance(batch, Tensor):
        batch = next(iter(batch.values())) if isinstance(batch, Mapping) else batch[0]
    return len(batch)


class Loop:
    """Takes optimizer steps, each on the mean loss of all examples of its batches, on all ranks together.

    A step reads ``accumulate`` batches, the last step whatever is left. The gradient is sum_b n_b * grad_b / sum_b n_b
    over these batches and over the ranks of a DistributedDataParallel or sharded model, so that every example weighs
    the same. Ranks step together or not at all: when one has no batch left, all stop.

    With ``master`` the optimizer and its riders see fp32 copies in the place of narrower weights, which get the copies
    rounded after each step: changes that bf16 cannot hold add up, and the optimizer's memory is fp32. A weight that is
    ``projected`` has such a copy in any case, and the model computes with a function of it: the copy masked, or rounded
    to a grid. Gradients pass straight through: the one of what was computed with is taken for the copy's. Of a sharded
    weight (``fully_shard``) each rank has the copy of its own part, and the function is given that part.

    Args:
        model: in the mode in which it is to train; its own draws (dropout) come from torch's global generators.
        optimizer: of the model; ``schedule`` scales the rates it has now.
        loss: (model, batch) -> the mean loss of the batch's examples.
        accumulate: batches of a step.
        clip: largest norm of a step's gradient over all weights.
        master: whether weights narrower than fp32 have fp32 copies; or, by weight, the copies to begin with.
        projected: by weight, what the model computes with, as a function of the fp32 copy, or of this rank's part of
            it; it may change from step to step, and leaves its argument alone.
        schedule: factor on the learning rates for the step with an index, from 0.
        riders: what is saved and restored with the loop, such as the ``SparseTraining`` of the optimizer.
        size: counts a batch's examples, or whatever its loss is a mean over, such as tokens.
        together: whether the model is one of equal copies in all ranks of the process group that nothing wraps, so that
            the loop itself adds up their gradients, in fp32 where there are fp32 copies.

    Attributes:
        step: optimizer steps done.
        norm: of the gradient over all weights, as it was before clipping. Ask on every rank when the optimizer takes
            its step; afterwards it is known if it was asked for or clipped, and else NaN.

    Raises:
        RecipeError: a setting is out of range.
        LowdimError: ``master`` is asked for weights that are sharded, or ones narrower than fp32 are ``projected``; or
            the optimizer updates weights in the backward pass, and something is to happen to whole gradients.

    Example:
        >>> import torch
        >>> model = nn.Linear(4, 1)
        >>> loop = Loop(
        ...     model,
        ...     torch.optim.SGD(model.parameters(), lr=0.1),
        ...     loss=lambda model, x: model(x).square().mean(),
        ...     clip=1.0,
        ... )
        >>> first, second = (loop.run([torch.ones(8, 4)] * 5) for _ in range(2))
        >>> loop.step, second < first
        (10, True)
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        loss: Callable[[nn.Module, Any], Tensor],
        accumulate: int = 1,
        clip: float | None = None,
        master: bool | Mapping[nn.Parameter, Tensor] = False,
        projected: Mapping[nn.Parameter, Callable[[Tensor], Tensor]] | None = None,
        schedule: Callable[[int], float] | None = None,
        riders: Sequence[Kept] = (),
        size: Callable[[Any], int] = examples,
        together: bool = False,
    ) -> None:
        check("accumulate", accumulate, Range(least=1, whole=True))
        check("clip", clip, Range(above=0, optional=True))
        self.model, self.optimizer, self.riders, self.step = model, optimizer, tuple(riders), 0
        self._norm: Tensor | float | None = math.nan
        self._loss, self._size, self._schedule = loss, size, schedule
        self._accumulate, self._clip = accumulate, clip
        self._adds_up = together
        self._together = together or ranks_agree(model)
        self._wide: dict[nn.Parameter, Tensor] = {}
        self._projected = dict(projected or {})
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        for parameter in self._parameters():
            narrow = parameter.is_floating_point() and parameter.dtype.itemsize < 4
            if isinstance(parameter, DTensor) and (master or (narrow and parameter in self._projected)):
                raise LowdimError(
                    "the model computes with what the shards hold, so that they have no wider copies; shard fp32 "
                    "weights instead, with MixedPrecisionPolicy(param_dtype=torch.bfloat16), and leave master out"
                )
            if (master and narrow) or parameter in self._projected:
                own = local(parameter).detach()
                begun = own if isinstance(master, bool) else master.get(parameter, own)
                self._wide[parameter] = begun.to(own.device, torch.float32, copy=True)
        if isinstance(model, DistributedDataParallel) and any(p.dtype.itemsize < 4 for p in self._wide):
            self._adds_up = True  # a weight whose data changes its type loses the hooks by which DDP would
        if getattr(optimizer, "layerwise", False) and (accumulate > 1 or clip is not None or together or self._wide):
            raise LowdimError(
                "the optimizer updates weights in the backward pass (layerwise), where gradients are not summed up, "
                "bounded or widened: take accumulate=1, no clip, no fp32 copies, one process, or leave layerwise out"
            )
        self._show()

    def _parameters(self) -> list[Any]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    # ---------------------------------------------------------------- training

    def run(self, batches: Iterable[Any], told: Callable[[int, float], None] | None = None) -> float:
        """Train once through the batches.

        Args:
            batches: what ``loss`` takes, on its device; of each rank its own.
            told: called after every step with the steps done and the mean loss of this rank's examples.

        Returns:
            The mean loss of an example, over all ranks, each before its step; NaN if there was none.

        Raises:
            LowdimError: a batch holds no example.
        """
        source, total, seen = iter(batches), 0.0, 0
        while True:
            part = list(islice(source, self._accumulate))
            sizes = [self._size(batch) for batch in part]
            if not all(sizes):
                raise LowdimError(f"a batch of step {self.step + 1} holds no example, so it has no mean loss")
            everyone = self._gathered(sum(sizes))
            if not all(everyone):
                break
            self._set_rates()
            losses = self._backward(part, sizes, sum(everyone) / len(everyone))
            self._take_step()
            lost = sum(float(loss) * count for loss, count in zip(losses, sizes, strict=True))
            total, seen = total + lost, seen + sum(sizes)
            if told is not None:
                told(self.step, lost / sum(sizes))
        total, seen = sum(self._gathered(total)), sum(self._gathered(seen))
        return total / seen if seen else float("nan")

    def _backward(self, part: Sequence[Any], sizes: Sequence[int], wanted: float) -> list[Tensor]:
        """Leave the step's gradient in the weights, ``wanted`` being its examples per rank; return the losses."""
        losses = []
        for index, (batch, count) in enumerate(zip(part, sizes, strict=True)):
            with _unsynced(self.model, self._adds_up or index + 1 < len(part)):
                loss = self._loss(self.model, batch)
                (loss if count == wanted else loss * (count / wanted)).backward()
            losses.append(loss.detach())
        return losses

    def _set_rates(self) -> None:
        if self._schedule is not None:
            factor = self._schedule(self.step)
            for group in self.optimizer.param_groups:
                group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor  # of a group that came later, too

    def _take_step(self) -> None:
        with self._widened():
            if self._adds_up:
                self._add_up()
            self._norm = None if self._clip is None else nn.utils.clip_grad_norm_(self._parameters(), self._clip)
            self.optimizer.step()
        self._norm = math.nan if self._norm is None else self._norm
        self.optimizer.zero_grad()
        self.step += 1

    def _add_up(self) -> None:
        """Give every rank the mean gradient of all; a weight that none has a gradient of keeps none."""
        own = self._parameters()
        there = torch.tensor([parameter.grad is not None for parameter in own], dtype=torch.int32)
        there = there.to(own[0].device)
        dist.all_reduce(there)
        for parameter, holders in zip(own, there.tolist(), strict=True):
            if holders:
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                dist.all_reduce(parameter.grad)
                parameter.grad /= dist.get_world_size()

    @property
    def norm(self) -> float:
        """See the class; computed for those who ask."""
        if self._norm is None:
            self._norm = nn.utils.get_total_norm([p.grad for p in self._parameters() if p.grad is not None])
        if isinstance(self._norm, Tensor):
            self._norm = float(full(self._norm))
        return self._norm

    @contextmanager
    def _widened(self) -> Iterator[None]:
        """Let weights and gradients be fp32 inside the block."""
        narrow = {p: p.data for p in self._wide if not isinstance(p, DTensor)}
        sharded = [p for p in self._wide if isinstance(p, DTensor)]
        for parameter in narrow:
            gradient, parameter.grad = parameter.grad, None
            parameter.data = self._wide[parameter]
            parameter.grad = None if gradient is None else gradient.float()
        for parameter in sharded:  # fully_shard gathers from the shards' own memory: they are written, not replaced
            local(parameter).detach().copy_(self._wide[parameter])
        try:
            yield
        finally:
            for parameter, shown in narrow.items():
                parameter.grad = None
                self._wide[parameter], parameter.data = parameter.data, shown
            for parameter in sharded:
                self._wide[parameter].copy_(local(parameter).detach())
            self._show()

    @torch.no_grad()
    def _show(self) -> None:
        """Let the model compute with the fp32 copies as they are now: rounded, and projected."""
        for parameter, wide in self._wide.items():
            made = self._projected.get(parameter)
            local(parameter).copy_(wide if made is None else made(wide))

    def _gathered(self, value: float) -> list[Any]:
        """Return a number of every rank."""
        if not self._together:
            return [value]
        everyone: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, value)
        return everyone

    def copy_of(self, parameter: nn.Parameter) -> Tensor:
        """Return what the optimizer trains in the place of a weight: its fp32 copy, or the weight itself."""
        return self._wide.get(parameter, parameter.detach())

    @torch.no_grad()
    def replace_copies(self, copies: Mapping[nn.Parameter, Tensor]) -> None:
        """Write what `copy_of` returns, by weight; the model computes with it from now on."""
        for parameter, copy in copies.items():
            self.copy_of(parameter).copy_(copy)
        self._show()

    # ---------------------------------------------------------------- what is kept

    def state_dict(self) -> dict[str, Any]:
        """Return all that is needed to go on, but for the batches from ``step`` on; tensors are shared, not copied."""
        return {
            "settings": self._settings(),
            "step": self.step,
            "model": ranks.unwrapped(self.model).state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "master": list(self._wide.values()),
            "riders": [rider.state_dict() for rider in self.riders],
        }

    def _settings(self) -> dict[str, Any]:
        counts = {"master": len(self._wide), "riders": len(self.riders)}
        return {"accumulate": self._accumulate, "clip": self._clip, **counts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a ``state_dict`` was taken; everything is constructed as it was in that run.

        Raises:
            CheckpointError: the state is of a loop with other settings; nothing has been changed then.
        """
        if state["settings"] != (mine := self._settings()):
            raise CheckpointError(
                f"the state was saved with {state['settings']}; this is {mine}. Use the same settings"
            )
        ranks.unwrapped(self.model).load_state_dict(state["model"])
        for parameter, held in zip(self._wide, state["master"], strict=True):
            self._wide[parameter] = held.to(parameter.device, copy=True)
        with self._widened():
            self.optimizer.load_state_dict(state["optimizer"])
            for rider, held in zip(self.riders, state["riders"], strict=True):
                rider.load_state_dict(held)
        self.step = state["step"]


@contextmanager
def _unsynced(model: nn.Module, on: bool) -> Iterator[None]:
    """Leave gradients of this rank alone inside the block, where the model is one of several."""
    if on and isinstance(model, DistributedDataParallel):
        with model.no_sync():
            yield
        return
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(not on)
    yield

"""AdamW of chosen entries: it remembers and changes no others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.adamw import adamw

from lowdim.core.errors import LowdimError
from lowdim.core.random import generator
from lowdim.train.optimizers.base import loss_of
from lowdim.train.optimizers.eight_bit import refuse_other, restore


class Choice(Protocol):
    """What says which entries of a matrix are trained."""

    @property
    def every(self) -> int:
        """Return the steps of a matrix between two choices."""

    @property
    def seed(self) -> int:
        """Return the seed of what is drawn."""

    def entries(self, shape: tuple[int, ...]) -> int:
        """Return K, how many entries of a matrix are trained."""

    def chosen(self, matrix: Tensor, draw: torch.Generator) -> Tensor:
        """Return the flat places of K entries of a matrix, int64 ``[K]``, ascending; none of them is zero."""

    def to_dict(self) -> dict[str, Any]:
        """Return the settings."""


class Entries(Optimizer):
    """Takes AdamW steps on K entries of every matrix; all others stay as they are, to the bit.

    What is kept of a matrix are vectors of length K: the places (``index``), Adam's two means, and, of a matrix
    narrower than fp32, the entries themselves in fp32 (``values``), so that steps too small for bf16 add up. Every so
    many steps of a matrix its entries are chosen anew from the weight as it is; those that stay keep their means, new
    ones begin at zero, and steps are counted on. Entries that are zero are never chosen: the zeros of a pruned model
    stay.

    Whatever looks at gradients before the step (accumulation, clipping, ranks) sees all of them. A weight of three
    dimensions is a stack of matrices, each with K entries. The state is read by ``torch.load(weights_only=True)``, and
    a run goes on from it to the same bytes.

    Args:
        params: matrices.
        choice: says which entries, and when they are chosen anew; see `lowdim.train.LIFT`.
        lr: learning rate.
        betas: how long the two means remember.
        eps: added to the root of the second.
        weight_decay: decoupled, of the chosen entries alone.

    Raises:
        LowdimError: a weight is no matrix, sharded or not contiguous in memory.
        RecipeError: a matrix is too small for the choice.

    Example:
        >>> from lowdim.train.optimizers.lift import LIFT
        >>> weight = torch.nn.Parameter(torch.tensor([[10.0, 0.0, 1.0], [9.0, 0.5, 1.2], [0.0, 0.1, 6.0]]))
        >>> before, optimizer = weight.detach().clone(), Entries([weight], LIFT(rank=1, budget=1), lr=0.1)
        >>> weight.sum().backward()
        >>> optimizer.step()
        >>> int((weight != before).sum()), optimizer.state[weight]["exp_avg"].shape
        (6, torch.Size([6]))
    """

    def __init__(
        self,
        params: Any,
        choice: Choice,
        *,
        lr: float = 2e-4,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        settings = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        self.choice = choice
        self._places: dict[Tensor, int] = {}
        super().__init__(params, {**settings, "choice": choice.to_dict()})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Take more matrices, which have entries of their own.

        Raises:
            LowdimError: as of the class; nothing has been changed then.
        """
        super().add_param_group(param_group)
        try:
            for p in param_group["params"]:
                if isinstance(p, DTensor) or p.dim() not in (2, 3) or not p.is_contiguous():
                    what = "is sharded" if isinstance(p, DTensor) else f"has the shape {tuple(p.shape)}"
                    raise LowdimError(
                        f"a weight {what}: entries are chosen of whole matrices that lie in one piece. Train in one "
                        "process or with DistributedDataParallel, and give matrices alone"
                    )
                self.choice.entries(tuple(p.shape[-2:]))
        except LowdimError:
            self.param_groups.pop()
            raise
        self._places |= {p: len(self._places) + place for place, p in enumerate(param_group["params"])}

    # ---------------------------------------------------------------- a step

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; return what the closure returns."""
        loss = loss_of(closure)
        for group in self.param_groups:
            moved = [p for p in group["params"] if p.grad is not None]
            for p in moved:
                if int(self.state[p].get("step", 0)) % self.choice.every == 0:
                    self._choose(p)
            if moved:
                self._move(group, moved)
        return loss

    def _move(self, group: dict[str, Any], moved: list[Tensor]) -> None:
        held = [self.state[p] for p in moved]
        places = [state["index"] for state in held]
        values = [
            state["values"] if "values" in state else p.view(-1).index_select(0, place)
            for p, state, place in zip(moved, held, places, strict=True)
        ]
        gradients = [_flat_gradient(p).index_select(0, at).float() for p, at in zip(moved, places, strict=True)]
        means, squares = ([state[name] for state in held] for name in ("exp_avg", "exp_avg_sq"))
        on_cpu = all(p.device.type == "cpu" for p in moved)  # elsewhere the fused step wants its counts on the device
        adamw(
            *(values, gradients, means, squares, [], [state["step"] for state in held]),
            fused=on_cpu,
            foreach=not on_cpu,
            amsgrad=False,
            maximize=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            **{name: group[name] for name in ("lr", "eps", "weight_decay")},
        )
        for p, place, value in zip(moved, places, values, strict=True):
            p.view(-1).scatter_(0, place.long(), value.to(p.dtype))

    def _choose(self, p: Tensor) -> None:
        """Choose the entries of a weight, and carry over what is known of those that stay."""
        state, step = self.state[p], int(self.state[p].get("step", 0))
        draw = generator(self.choice.seed, "entries", self._places[p], step, device=str(p.device))
        stack, size = p.detach().view(-1, *p.shape[-2:]), p.shape[-1] * p.shape[-2]
        index = torch.cat([self.choice.chosen(m.float(), draw) + i * size for i, m in enumerate(stack)])
        fresh = {name: torch.zeros(len(index), dtype=torch.float32, device=p.device) for name in _MEANS}
        wide = p.view(-1)[index].float() if p.dtype.itemsize < 4 else None
        known = torch.zeros(len(index), dtype=torch.bool, device=p.device)
        if state:
            old = state["index"].long()
            at = torch.searchsorted(old, index).clamp_(max=len(old) - 1)
            known = old[at] == index
            for name, value in {**fresh, **({} if wide is None else {"values": wide})}.items():
                value[known] = state[name][at[known]]
        small = p.numel() < 2**31
        state.setdefault("step", torch.zeros((), dtype=torch.float32))
        state.update(fresh, index=index.int() if small else index, **({} if wide is None else {"values": wide}))
        state["touched"] = state.get("touched", 0) + int((~known).sum())

    # ---------------------------------------------------------------- what is kept

    def state_bytes(self) -> int:
        """Return the bytes of all that is kept of the weights."""
        return sum(v.nbytes for state in self.state.values() for v in state.values() if isinstance(v, Tensor))

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a ``state_dict``; every tensor keeps its dtype.

        Raises:
            CheckpointError: it is of another choice; nothing has been changed then.
        """
        refuse_other(self, state_dict, "choice", "an optimizer without chosen entries")
        super().load_state_dict({**state_dict, "state": {}})
        restore(self, state_dict)


_MEANS = ("exp_avg", "exp_avg_sq")


def _flat_gradient(p: Tensor) -> Tensor:
    assert p.grad is not None
    return p.grad.reshape(-1)

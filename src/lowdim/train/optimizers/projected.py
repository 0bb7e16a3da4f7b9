"""Projected: any optimizer, with its memory in a few directions of every matrix."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from lowdim.core.errors import LowdimError
from lowdim.core.random import generator
from lowdim.nn.int8 import Int8Weight
from lowdim.train.optimizers.base import loss_of
from lowdim.train.optimizers.clipping import refuse_clipping
from lowdim.train.optimizers.eight_bit import refuse_other, restore
from lowdim.train.optimizers.projector import Held, Projector
from lowdim.train.ride import optimizer_of
from lowdim.train.sparse.distributed import local

_OWN = "projector."
DECOUPLED = (torch.optim.AdamW, torch.optim.Adafactor, torch.optim.Muon)
COUPLED = (torch.optim.SGD, torch.optim.Adam)


class Projected(Optimizer):
    """Takes the steps of another optimizer, for matrices in the small space of a `Projector`.

    At a step the inner optimizer is shown, in the place of a matrix W with gradient G, a zero matrix whose gradient is
    the projected G. What it makes of the zeros is the update of the small space, which goes back to W. Its momenta have
    the shape of the small space; they are neither turned nor cleared when directions change. Whatever sees
    the gradient before the step (accumulation, clipping, averaging over ranks, a GradScaler) sees all of G. Decay acts
    on W: decoupled for AdamW, Adafactor and Muon, added to G before projection for SGD and Adam.

    Groups and state are of the model's own weights, and the state holds tensors and whole numbers alone: it is read
    by ``torch.load(weights_only=True)``, and a run goes on from it to the same bytes.

    With ``layerwise`` a weight is updated in the backward pass, as soon as its gradient is there, and the gradient is
    freed: there is never more than one. `step` then only ends the step. Nothing can look at the whole gradient,
    so that there is no accumulation (a second backward pass before `step` is refused), no clipping by the norm of
    all weights, no GradScaler, and no second rank.

    Weights under ``fully_shard`` keep their shards: the gradient of a matrix is gathered when directions are chosen,
    and a left projection adds up small gradients over the ranks at every step.

    Args:
        inner: an optimizer of the model, fresh; it is not to be stepped by anyone else.
        projector: of every target.
        targets: matrices to project; None takes all matrices that the optimizer has.
        layerwise: update in the backward pass.

    Raises:
        LowdimError: a target is not the optimizer's, is no matrix or too small, there is none, the inner optimizer has
            begun, its decay is of an unknown kind, it is Adafactor and weights are sharded, or ranks were to be
            layerwise.
        RecipeError: at the first gradient: it is layerwise, and a trainer would clip.

    Example:
        >>> from lowdim.train.optimizers.projectors import SVD
        >>> layer = nn.Linear(2, 3, bias=False)
        >>> optimizer = Projected(torch.optim.AdamW(layer.parameters(), lr=0.1), SVD(rank=1, scale=1.0))
        >>> layer(torch.tensor([[1.0, 0.0]])).sum().backward()
        >>> optimizer.step()
        >>> {key: tuple(value.shape) for key, value in optimizer.state[layer.weight].items() if key.startswith("exp")}
        {'exp_avg': (3, 1), 'exp_avg_sq': (3, 1)}
    """

    def __init__(
        self,
        inner: Optimizer,
        projector: Projector,
        targets: Iterable[Tensor] | None = None,
        *,
        layerwise: bool = False,
    ) -> None:
        inner = optimizer_of(inner)
        mine = [p for group in inner.param_groups for p in group["params"]]
        chosen = [p for p in mine if p.dim() == 2] if targets is None else list(targets)
        if inner.state or {id(p) for p in chosen} - {id(p) for p in mine} or not chosen:
            raise LowdimError(
                "Projected takes a fresh optimizer and some of its matrices: "
                + ("this one has taken steps" if inner.state else "targets names others" if chosen else "there is none")
            )
        for p in chosen:
            projector.sides(tuple(p.shape))
        if layerwise and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            raise LowdimError(
                "layerwise updates a weight before the ranks have averaged its gradient. Leave layerwise out, or "
                "train in one process."
            )
        if isinstance(inner, torch.optim.Adafactor) and any(isinstance(p, DTensor) for p in mine):
            raise LowdimError(
                "Adafactor takes means over rows and columns in place, which a weight that fully_shard has cut does "
                "not allow. Take AdamW or SGD as the inner optimizer, or DistributedDataParallel."
            )
        self.inner, self.projector, self.layerwise = inner, projector, layerwise
        self._coupled = [_coupled(inner, group) for group in inner.param_groups]
        spelt = {"kind": type(projector).__name__, **projector.to_dict()}
        super().__init__([dict(group) for group in inner.param_groups], {**inner.defaults, "projector": spelt})
        inner.param_groups = []
        places = {id(p): place for place, p in enumerate(mine)}
        self._places = {p: places[id(p)] for p in chosen}
        self._fired: set[Tensor] = set()
        self._looked = False

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Take more weights, which are trained as they are; frozen ones may be trained later."""
        super().add_param_group(param_group)
        for p in self.param_groups[-1]["params"] if self.layerwise else ():
            trained = p.requires_grad
            p.requires_grad_().register_post_accumulate_grad_hook(self._hook(len(self.param_groups) - 1))
            p.requires_grad_(trained)

    # ---------------------------------------------------------------- a step

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step, or end one where weights were updated on the way; return what the closure returns."""
        loss = loss_of(closure)
        if not self.layerwise:
            self._update([(i, [p for p in g["params"] if p.grad is not None]) for i, g in enumerate(self.param_groups)])
        elif not self._looked:
            refuse_clipping()  # gradients of a GPU come in a thread of their own, which knows no caller
            self._looked = True
        self._fired.clear()
        return loss

    def _hook(self, index: int) -> Callable[[Tensor], None]:
        @torch.no_grad()
        def arrived(p: Tensor) -> None:
            if not self._looked and not self._fired:
                refuse_clipping()
            if p in self._fired:
                raise LowdimError(
                    "a second gradient has come before step(): layerwise updates do not accumulate. Call step() "
                    "after every backward pass, with accumulation of 1, or leave layerwise out."
                )
            self._fired.add(p)
            self._update([(index, [p])])
            p.grad = None

        return arrived

    def _update(self, parts: Sequence[tuple[int, list[Tensor]]]) -> None:
        """Update the weights of some groups, given by their index, all of which have gradients."""
        moved: list[tuple[int, Tensor, nn.Parameter, Held]] = []
        shown: list[dict[str, Any]] = []
        for index, parameters in parts:
            stand: list[Tensor] = []
            for p in parameters:
                if p not in self._places:
                    self.inner.state[p] = self.state[p]
                    stand.append(p)
                    continue
                held, theirs = self._split(p)
                gradient = self._gradient(index, p)
                if not self.projector.refresh(gradient, held, held["step"], self._places[p]):
                    continue
                small = self.projector.project(gradient, held)
                zeros = nn.Parameter(torch.zeros_like(small))
                zeros.grad = small
                self.inner.state[zeros] = theirs
                stand.append(zeros)
                moved.append((index, p, zeros, held))
            shown.append({**self.param_groups[index], "params": stand})
        self.inner.param_groups = shown
        self.inner.step()
        for (index, _), used in zip(parts, shown, strict=True):
            self.param_groups[index].update({key: value for key, value in used.items() if key != "params"})
        for index, p, zeros, held in moved:
            self._move(index, p, zeros, held)
            theirs = self.inner.state.pop(zeros)
            held["step"] += 1
            self.state[p] = {**theirs, **{_OWN + key: value for key, value in held.items()}}
        for p, state in self.inner.state.items():
            self.state[p] = state
        self.inner.state, self.inner.param_groups = defaultdict(dict), []

    def _split(self, p: Tensor) -> tuple[Held, dict[str, Any]]:
        """Return what the projector and what the inner optimizer keep of a weight."""
        state = self.state[p]
        held: Held = {"step": 0} | {k.removeprefix(_OWN): v for k, v in state.items() if k.startswith(_OWN)}
        return held, {k: v for k, v in state.items() if not k.startswith(_OWN)}

    def _gradient(self, index: int, p: Tensor) -> Tensor:
        """Return the gradient of a weight, with the decay that is part of it."""
        group = self.param_groups[index]
        assert p.grad is not None
        if not self._coupled[index] or not group["weight_decay"]:
            return p.grad
        sign = -1.0 if group.get("maximize") else 1.0
        return p.grad.add(p, alpha=sign * group["weight_decay"])

    def _move(self, index: int, p: Tensor, zeros: Tensor, held: Held) -> None:
        """Move a weight by the step of its small space."""
        group, update = self.param_groups[index], zeros.detach()
        rate = float(group["lr"])
        if isinstance(self.inner, torch.optim.Adafactor):  # scales its steps by the weight's root mean square
            least = group["eps"][1]
            update = update * (torch.clamp(p.float().square().mean().sqrt(), min=least) / least)
        sign = -1.0 if group.get("maximize") else 1.0
        change = self.projector.back(update, held, sign * self._gradient(index, p), rate)
        if group.get("weight_decay") and not self._coupled[index]:
            change = change.sub_(p, alpha=rate * group["weight_decay"])
        own = local(p)
        if isinstance(own, Int8Weight):
            draw = generator(self.projector.seed, "rounding", self._places[p], held["step"], device=str(p.device))
            before = 0
            if isinstance(p, DTensor):
                change = change.redistribute(p.device_mesh, p.placements)  # type: ignore[attr-defined]
                cut = next((d for d, place in enumerate(p.placements) if place.is_shard()), None)
                before = 0 if cut is None else p.device_mesh.get_local_rank(cut) * len(own.scales)
            own.move_(local(change), draw, before)
        else:
            p.add_(change)

    # ---------------------------------------------------------------- what is kept

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a ``state_dict``; every tensor keeps its dtype.

        Raises:
            CheckpointError: it is of another projector; nothing has been changed then.
        """
        refuse_other(self, state_dict, "projector", "an optimizer without projector")
        super().load_state_dict({**state_dict, "state": {}})
        restore(self, state_dict)


def _coupled(inner: Optimizer, group: dict[str, Any]) -> bool:
    """Tell whether an optimizer adds its decay to the gradient.

    Raises:
        LowdimError: nobody knows.
    """
    if "decoupled_weight_decay" in group:
        return not group["decoupled_weight_decay"]
    if isinstance(inner, COUPLED):
        return True
    if isinstance(inner, DECOUPLED) or not group.get("weight_decay"):
        return False
    raise LowdimError(
        f"what {type(inner).__name__} does with weight_decay={group['weight_decay']} is not known, so that it would "
        "be lost for projected matrices. Take weight_decay=0, or one of SGD, Adam, AdamW, Adafactor, Muon."
    )

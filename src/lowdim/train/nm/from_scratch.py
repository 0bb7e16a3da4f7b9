"""The rider of N:M training from scratch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MethodType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from lowdim.core.errors import CheckpointError, LowdimError, PatternError
from lowdim.core.random import generator
from lowdim.core.settings import Range, check
from lowdim.models import ranks
from lowdim.nn.blocks import linear_layers
from lowdim.nn.int8 import Int8Weight
from lowdim.train.nm.base import FromScratch
from lowdim.train.nm.mvue import linear
from lowdim.train.nm.riders import MaskRider
from lowdim.train.nm.variance import Variance
from lowdim.train.ride import Ride, optimizer_of

_TAKES = "2:4 training from scratch takes linear layers of floats that are whole on a rank"


class SparseFromScratch(MaskRider):
    """Lets a model compute with N:M weights while all of them train, by a rule such as `FST`, `SSTE` or `SRSTE`.

    Construct it after the optimizer, and train as before: the layers compute with what the rule shows of their weights,
    which stay dense, and `finish` writes it into them at the end. In a `Loop` that takes `projections` as ``projected``
    and has this among its riders it is in the weights all along, and the dense ones are the loop's fp32 copies; losses
    are the same to the bit. A copy of the model, such as an average, computes with the masks as they are now where
    there is no such loop. Masks are chosen before the first step and anew every ``rule.every`` steps; each appends
    to ``history`` the step and the flip rate, the share of weights that changed sides since the choice before, in the
    dense end as well, where it is of the masks that there would be. What is drawn depends on the seed, the layer, the
    step and the rank alone.

    Args:
        layers: by name, linear layers; or a model, whose feed-forward layers these are, as in the papers.
        rule: what is computed with.
        optimizer: that trains their weights.
        total_steps: of the run.
        seed: of the draws of MVUE.

    Attributes:
        masks: by name, which weights are kept, bool [out, in], as of the last choice.
        since: the step behind which masks began; None while they wait, 0 where they do not.

    Raises:
        PatternError: a weight has no whole groups.
        LowdimError: there is no layer, one is not linear, is sharded or in 8 bits, or the optimizer lacks its weight,
            or is of a kind that the rule does not take.

    Example:
        >>> from lowdim.train.nm.fst import FST
        >>> layer = nn.Linear(8, 4, bias=False)
        >>> optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
        >>> sparse = SparseFromScratch({"layer": layer}, FST(every=2, tail=0.0), optimizer, total_steps=4)
        >>> for _ in range(4):
        ...     layer(torch.randn(4, 8)).square().mean().backward()
        ...     optimizer.step()
        ...     optimizer.zero_grad()
        >>> sparse.finish()
        >>> int((layer.weight != 0).sum()), [choice["step"] for choice in sparse.history]
        (16, [2, 4])
    """

    def __init__(
        self,
        layers: Mapping[str, nn.Module] | nn.Module,
        rule: FromScratch,
        optimizer: Optimizer,
        total_steps: int,
        *,
        seed: int = 0,
    ) -> None:
        check("total_steps", total_steps, Range(least=1, whole=True))
        self.rule, self.total_steps, self._seed = rule, total_steps, seed
        if isinstance(layers, nn.Module):
            layers = linear_layers(ranks.unwrapped(layers), attention=False)
        self._layers = {name: _checked(name, layer, rule, optimizer_of(optimizer)) for name, layer in layers.items()}
        if not layers:
            raise LowdimError("there is no layer to be sparse. Give at least one linear layer.")
        self.masks = {name: rule.mask(layer.weight) for name, layer in self._layers.items()}
        self._factors = {name: rule.factor(layer.weight) for name, layer in self._layers.items()}
        self.history: list[dict[str, Any]] = []
        self._shown: set[str] = set()
        self._backward: dict[str, int] = {}
        self._optimizer = optimizer_of(optimizer)
        own = [cast("nn.Parameter", layer.weight) for layer in self._layers.values()]
        self._variance = Variance(self._optimizer, own) if rule.holds else None
        self.since: int | None = None if rule.holds else 0
        self._changes: list[float] = []
        self._ride = Ride.board(optimizer, self)
        for name, layer in self._layers.items():  # methods: a copy has weights of its own
            layer.forward = MethodType(self._forward(name), layer)  # type: ignore[method-assign]

    def weights(self) -> list[tuple[str, Tensor]]:
        """Return those that are computed with as 2:4."""
        return [(name, layer.weight) for name, layer in self._layers.items()]

    def projections(self) -> dict[nn.Parameter, Callable[[Tensor], Tensor]]:
        """Return what a `Loop` computes with, for its ``projected``."""
        return {cast("nn.Parameter", layer.weight): self._projection(name) for name, layer in self._layers.items()}

    def dense(self, step: int) -> bool:
        """Tell whether the model computes with dense weights in a step, counted from 1."""
        return self.since is None or self.rule.dense(step, self.total_steps)

    def _projection(self, name: str) -> Callable[[Tensor], Tensor]:
        def shown(wide: Tensor) -> Tensor:
            self._shown.add(name)
            if self.dense(self.step + 1):
                return wide
            return self.rule.shown(wide, self.masks[name], self._factors[name])

        return shown

    def _forward(self, name: str) -> Callable[[nn.Linear, Tensor], Tensor]:
        def draw(device: torch.device) -> torch.Generator:
            self._backward[name] = self._backward.get(name, 0) + 1
            where = ("mvue", name, self.step, self._backward[name], ranks.rank())
            return generator(self._seed, *where, device=str(device))

        def forward(layer: nn.Linear, input: Tensor) -> Tensor:
            weight: Tensor = layer.weight
            if name not in self._shown and not self.dense(self.step + 1):
                weight = _Through.apply(weight, self._now(name, layer))  # type: ignore[no-untyped-call]
            if not self.rule.mvue or self.dense(self.step + 1) or not torch.is_grad_enabled():
                return nn.functional.linear(input, weight, layer.bias)
            return linear(input, weight, layer.bias, lambda: draw(weight.device))

        return forward

    @torch.no_grad()
    def _now(self, name: str, layer: nn.Linear) -> Tensor:
        return self.rule.shown(layer.weight.detach(), self.masks[name], self._factors[name])

    # ---------------------------------------------------------------- around the optimizer's step

    @torch.no_grad()
    def gradients(self, step: int) -> bool:
        """Add the decay of what is pruned to the gradients, where the rule has it there."""
        if self.rule.decays == "gradient":
            for name, weight, group in self._decaying(step):
                if weight.grad is not None:
                    decay = -self.rule.decay if group.get("maximize") else self.rule.decay
                    weight.grad.addcmul_(weight, ~self.masks[name], value=decay)
        if self._variance is not None and self.since is None:
            self._variance.note()
        elif self._variance is not None and self.since is not None and not self.dense(step):
            self._variance.step(self.rule.remembered(self.since))
        return False

    @torch.no_grad()
    def stepped(self, step: int) -> None:
        """Decay what is pruned, where the rule has it here, and choose the masks anew, where it is time."""
        if self.rule.decays == "weight":
            for name, weight, group in self._decaying(step):
                weight.addcmul_(weight, ~self.masks[name], value=-float(group["lr"]) * self.rule.decay)
        self._backward.clear()
        self.step = step  # what the model computes with next is that of the next step
        if self._variance is not None and self.since is None:
            self._changes = [*self._changes, self._variance.change()][-self._variance.window :]
            if self.rule.begins(step, self.total_steps, self._changes, self._variance.eps):
                self.since, self._changes = step, []
        if step % self.rule.every == 0 or self.since == step:
            before = self.masks
            self.masks = {name: self.rule.mask(layer.weight) for name, layer in self._layers.items()}
            flips = sum(int((before[name] ^ mask).sum()) for name, mask in self.masks.items())
            size = sum(mask.numel() for mask in self.masks.values())
            self.history.append({"step": step, "flip_rate": flips / size})

    def _decaying(self, step: int) -> list[tuple[str, Tensor, Mapping[str, Any]]]:
        """Return the weights that decay in a step, with their groups of the optimizer."""
        if not self.rule.decay or self.dense(step):
            return []
        groups = {p: group for group in self._optimizer.param_groups for p in group["params"]}
        weights = {name: layer.weight for name, layer in self._layers.items() if layer.weight.requires_grad}
        return [(name, weight, groups[weight]) for name, weight in weights.items()]

    # ---------------------------------------------------------------- what is kept

    def state_dict(self) -> dict[str, Any]:
        """Return what resuming needs beside the weights and the optimizer's state."""
        return {
            "recipe": self._recipe(),
            "step": self.step,
            "masks": dict(self.masks),
            "factors": dict(self._factors),
            "since": self.since,
            "changes": list(self._changes),
            "history": [dict(choice) for choice in self.history],
        }

    def _recipe(self) -> dict[str, Any]:
        return {
            "rule": {"kind": type(self.rule).__name__, **self.rule.to_dict()},
            "total_steps": self.total_steps,
            "seed": self._seed,
            "layers": {name: list(layer.weight.shape) for name, layer in self._layers.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a ``state_dict`` was taken.

        Raises:
            CheckpointError: the state is of another run; nothing has been changed then.
        """
        if state.get("recipe") != self._recipe():
            raise CheckpointError(
                f"this state was saved with {state.get('recipe')}, this is {self._recipe()}. Construct everything "
                "as it was in the run that is resumed"
            )
        for name, layer in self._layers.items():
            self.masks[name] = state["masks"][name].to(layer.weight.device)
            self._factors[name] = state["factors"][name].to(layer.weight.device)
        self.step, self.history = int(state["step"]), [dict(choice) for choice in state["history"]]
        self.since, self._changes = state["since"], list(state["changes"])

    def remove(self) -> None:
        """Get off; layers compute as ever, with their weights as they are."""
        self._ride.leave(self)
        for layer in self._layers.values():
            layer.__dict__.pop("forward", None)

    @torch.no_grad()
    def finish(self) -> None:
        """Write what is computed with into the weights, unless the end is dense or a loop has done so, and get off."""
        for name, layer in self._layers.items() if not self.dense(self.step + 1) else ():
            if name not in self._shown:
                layer.weight.copy_(self._now(name, layer))
        self.remove()


class _Through(torch.autograd.Function):
    """What stands in the place of a weight, whose gradient is taken for the weight's."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, shown: Tensor) -> Tensor:
        """Return what is shown."""
        return shown

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """Pass the gradient."""
        return gradients[0], None


def _checked(name: str, layer: nn.Module, rule: FromScratch, optimizer: Optimizer) -> nn.Linear:
    """Return a layer that can be sparse.

    Raises:
        PatternError: its weight has no whole groups.
        LowdimError: it cannot for another reason.
    """
    if not isinstance(layer, nn.Linear):
        raise LowdimError(f"{name} is a {type(layer).__name__}; {_TAKES}")
    if isinstance(layer.weight, DTensor | Int8Weight):
        raise LowdimError(f"{name} is {'sharded' if isinstance(layer.weight, DTensor) else 'kept in 8 bits'}; {_TAKES}")
    rows, cols = layer.weight.shape
    if cols % rule.groups.group or rows % rule.tile:
        raise PatternError(
            f"{name} has a weight of shape {rows} x {cols}: {rule.groups.group} must divide its inputs"
            f"{' and its outputs' if rule.tile == 4 else ''}. Leave it out, or change the width."
        )
    if not any(layer.weight is p for group in optimizer.param_groups for p in group["params"]):
        raise LowdimError(f"{name} is not trained: the optimizer must hold its weight")
    return layer

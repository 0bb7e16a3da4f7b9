"""How strongly two layers' neurons fire together, in one pass over the batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from lowdim.core.errors import LowdimError
from lowdim.nn.blocks import evaluating
from lowdim.train.ride import Observer, Ride
from lowdim.train.sparse.distributed import local


class Passes(Observer):
    """The inputs of a model's training passes since the last mask update, to run it over them again.

    Args:
        model: whose own forward pass is watched.
        optimizer: that trains it.
        every: steps whose inputs are held at most, for the time when no more updates come.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, every: int) -> None:
        self._model, self._every = model, every
        self.inputs: list[tuple[int, Any]] = []
        self._ride = Ride.board(optimizer, self)
        self.running, self._done = False, False
        self._clear: list[Callable[[], None]] = []
        self._handle = model.register_forward_pre_hook(self._keep, with_kwargs=True)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the ride behind where a watched model is copied or pickled."""
        return {name: value for name, value in vars(self).items() if name != "_ride"}

    def _keep(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if module.training and not self.running:
            held = tree_map(lambda x: x.detach().clone() if isinstance(x, Tensor) else x, (args, kwargs))
            self.inputs.append((self.step, held))
            self._done = False

    def gradients(self, step: int) -> bool:
        """Leave them as they are."""
        return False

    def stepped(self, step: int) -> None:
        """Forget what is older than the steps of an update."""
        if self.inputs and self.inputs[0][0] < step - self._every:
            self.inputs = [(seen, held) for seen, held in self.inputs if seen >= step - self._every]
            self._done = False

    def feed(self, clear: Callable[[], None]) -> None:
        """Let someone sum up what the passes show, who can forget it."""
        self._clear.append(clear)

    @torch.no_grad()
    def run(self) -> None:
        """Run over the inputs in evaluation mode, unless that was done."""
        if self._done or not self.inputs:
            return
        for clear in self._clear:
            clear()
        self.running = True
        try:
            with evaluating(self._model):
                for _, (args, kwargs) in self.inputs:
                    self._model(*args, **kwargs)
        finally:
            self.running = False
        self._done = True

    def load(self, inputs: list[Any]) -> None:
        """Take inputs, as if they had just been seen; none to forget them."""
        self.inputs, self._done = [(self.step, held) for held in inputs], False

    def state_dict(self) -> dict[str, Any]:
        """Return what is held."""
        return {"inputs": [held for _, held in self.inputs]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take what a ``state_dict`` held."""
        self.load(state["inputs"])

    def remove(self) -> None:
        """Take the hook off."""
        self._handle.remove()
        self._ride.leave(self)


class Correlation:
    """Running sums over what enters a linear layer and what leaves it, behind the activation.

    |cos|_qp = |sum_b y_bq x_bp| / sqrt(sum_b y_bq^2 sum_b x_bp^2); sums of every training batch since the last
    ``clear``, or of another pass over these batches, on all ranks together, but for batches that overflow. What leaves
    a layer is what enters the next one, and the softmax of the output for the last.

    Args:
        name: of the layer, for messages.
        module: the linear layer.
        following: the layer whose input is this one's output behind the activation; None for the last.
        model: that the layers are part of: each of its passes starts anew.
        passes: what is summed instead of the training passes.
    """

    def __init__(
        self,
        name: str,
        module: nn.Linear,
        following: nn.Linear | None,
        model: nn.Module,
        passes: Passes | None = None,
    ) -> None:
        self._name, self._module, self._passes = name, module, passes
        if passes is not None:
            passes.feed(self._forget)
        self._x: Tensor | None = None
        device = local(module.weight).device
        self._cross = torch.zeros(module.out_features, module.in_features, device=device)
        self._out = torch.zeros(module.out_features, device=device)
        self._in = torch.zeros(module.in_features, device=device)
        self._seen, self._replicated = False, False
        self._handles = [
            model.register_forward_pre_hook(self._begin),
            module.register_forward_pre_hook(self._enter),
            module.register_forward_hook(self._leave)
            if following is None
            else following.register_forward_pre_hook(self._follow),
        ]

    def _begin(self, module: nn.Module, args: Any) -> None:
        self._x = None

    def _enter(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        again = self._passes is not None and self._passes.running
        self._x = args[0].detach() if module.training or again else None
        if module.training:
            self._replicated = DistributedDataParallel._get_active_ddp_module() is not None

    def _leave(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        self._add(output.detach().softmax(-1))

    def _follow(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self._add(args[0].detach())

    def _add(self, y: Tensor) -> None:
        if self._x is None:
            return
        x, self._x = self._x, None
        if x.shape[:-1] != y.shape[:-1] or x.data_ptr() == y.data_ptr():
            raise LowdimError(
                f"CTRE correlates what enters a linear layer with what enters the next one, but the layer after "
                f"{self._name} is fed with something else ({list(y.shape)} after {list(x.shape)}). It trains chains of "
                "linear layers: exclude this one, or use SET or RigL"
            )
        if self._passes is not None and not self._passes.running:
            return
        x, y = (part.float().reshape(-1, part.shape[-1]) for part in (x, y))
        square_out, square_in = y.square().sum(0), x.square().sum(0)
        sound = (square_out.sum() + square_in.sum()).isfinite()
        for total, new in ((self._cross, y.t() @ x), (self._out, square_out), (self._in, square_in)):
            total += torch.where(sound, new, 0.0)
        self._seen = True

    def cosine(self) -> Tensor:
        """Return |cos|, fp32 [out, in], zero where a neuron never fired; on several ranks all must call it.

        Raises:
            LowdimError: no batch was seen.
        """
        if self._passes is not None:
            self._passes.run()
        if not self._seen:
            raise LowdimError(
                f"CTRE saw no training batch pass through {self._name} before a mask update. It watches the model's "
                "own forward pass in training mode (model.train()), layer after layer as they are defined"
            )
        cross, out, into = self._cross, self._out, self._in
        if self._replicated or isinstance(self._module.weight, DTensor):
            cross, out, into = (total.clone() for total in (cross, out, into))
            for total in (cross, out, into):
                dist.all_reduce(total)
        norm = (out[:, None] * into[None, :]).sqrt()
        return torch.where(norm > 0, cross.abs() / norm, torch.zeros_like(norm))

    def clear(self) -> None:
        """Forget the batches seen."""
        self._forget()
        if self._passes is not None:
            self._passes.load([])

    def _forget(self) -> None:
        self._seen = False
        for sums in (self._cross, self._out, self._in):
            sums.zero_()

    def state_dict(self) -> dict[str, Any]:
        """Return the sums."""
        sums = {"cross": self._cross, "out": self._out, "in": self._in}
        held = {} if self._passes is None else self._passes.state_dict()
        return {"seen": self._seen} | held | {name: total.clone() for name, total in sums.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the sums of a ``state_dict``."""
        self._seen = state["seen"]
        if self._passes is not None:
            self._passes.load_state_dict(state)
        self._cross.copy_(state["cross"])
        self._out.copy_(state["out"])
        self._in.copy_(state["in"])

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        if self._passes is not None:
            self._passes.remove()

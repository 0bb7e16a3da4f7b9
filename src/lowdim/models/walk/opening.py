"""Experts that are slices of 3-D parameters, seen one by one while their module computes as it always did.

Transformers keeps the experts of a block in parameters such as ``gate_up_proj [experts, 2 * width, hidden]``, some of
them transposed, with biases, interleaved, without a gate, or with norms behind them. None of that is repeated here: the
module's own ``forward`` runs, and whenever it multiplies by an expert's slice, that expert's layer is told its input.
The layers' weights are *views* of the parameters, so that a write to one is a write to the 3-D tensor.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers.pytorch_utils import Conv1D

from lowdim.core.errors import LowdimError
from lowdim.models.structure.routers import inputs_first, stacks
from lowdim.models.walk.calls import swap

_PRODUCTS = {
    *(functional.linear, torch.matmul, torch.mm, torch.bmm),
    *(Tensor.matmul, Tensor.mm, Tensor.bmm, Tensor.__matmul__),
}


class OpenExperts(nn.ModuleList):
    """The experts of a module, one member each, which holds a layer per parameter under the parameter's name.

    ``token_mask`` (bool ``[tokens]``, or ``None``) marks the tokens that count: padding enters no expert's statistics.
    Nothing reads what comes of padded positions.

    Args:
        fused: the module.
        parts: its 3-D parameters.
    """

    def __init__(self, fused: nn.Module, parts: list[str]) -> None:
        super().__init__()
        self.__dict__["fused"] = fused  # not a child: its parameters are seen expert by expert
        turned = inputs_first(fused, parts)
        for index in range(fused.get_parameter(parts[0]).shape[0]):
            expert = nn.Module()
            for part in parts:
                held = fused.get_parameter(part).data
                if index < len(held):
                    expert.add_module(part, _view(held[index], turned))
            self.append(expert)
        self.token_mask: Tensor | None = None
        self._marked = False

    def __getattr__(self, name: str) -> Any:
        """Return what the module around them may ask of the experts."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["fused"], name)

    def layer(self, index: int, part: str) -> nn.Module:
        """Return one expert's layer."""
        return self[index].get_submodule(part)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute as the module does, its hooks included, with every layer told its inputs."""
        fused = self.__dict__["fused"]
        forward = type(fused).forward
        if hasattr(fused, "_is_expert_parallel"):  # the kernels of Transformers, of which the module's own is one
            forward = inspect.unwrap(forward)
        own = vars(fused).get("forward", partial(forward, fused))  # one that it was given
        before = swap(fused, {"forward": partial(self._watched, own)})
        try:
            return fused._call_impl(*args, **kwargs)
        finally:
            swap(fused, before)

    def _watched(self, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        real = self._real(args, kwargs)
        if real is not None:
            args = (args[0].masked_fill(~real, torch.nan), *args[1:])
        with _Watch(self, real is not None):
            out = own(*args, **kwargs)
        return out if real is None else torch.where(real.reshape(*out.shape[:-1], 1), out, 0.0)

    @property
    def knows_padding(self) -> bool:
        """Whether padding is told from tokens among the inputs of the layers."""
        return self.token_mask is None or self._marked

    def _real(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        """Return which rows of the input are tokens, bool ``[..., 1]``; ``None`` where all are, or nobody can tell."""
        self._marked = False
        if self.token_mask is None or torch.is_grad_enabled() or not args:
            return None
        lead, tokens = args[0].shape[:-1], self.token_mask.numel()
        copies = len(self) if len(args) + len(kwargs) == 1 else 1  # experts that are handed all tokens, each its own
        rows = args[0].numel() // args[0].shape[-1]
        if rows not in (tokens, copies * tokens):
            return None
        self._marked = True
        return self.token_mask.to(args[0].device).repeat(rows // tokens).reshape(*lead, 1)


class _Watch(TorchFunctionMode):
    """Tells layers of the products with their weights."""

    def __init__(self, experts: OpenExperts, marked: bool) -> None:
        super().__init__()
        self._experts, self._marked = experts, marked
        named = experts.__dict__["fused"].named_parameters(recurse=False)
        self._parts = {n: range(p.data_ptr(), p.data_ptr() + p.nbytes) for n, p in named if p.dim() == 3}
        self._last: tuple[nn.Module, Tensor] | None = None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        held = [place for place, value in enumerate(args) if self._part(value)]
        product = func in _PRODUCTS and held == [1]
        if product and torch.is_grad_enabled():
            args = (args[0], self._differentiable(args[1]), *args[2:])
        out = func(*args, **(kwargs or {}))
        if product:
            self._seen(func is functional.linear, args[0], args[1], out)
        elif held and isinstance(out, Tensor) and out.is_floating_point() and not self._part(out):
            raise LowdimError(
                f"{type(self._experts.__dict__['fused']).__name__} uses the weights of its experts in "
                f"{getattr(func, '__name__', func)}, so that what enters an expert is unknown. Leave the experts out "
                "with targets.exclude"
            )
        return out

    def _part(self, value: Any) -> str | None:
        """Return the parameter in whose memory a value lies."""
        if not isinstance(value, Tensor):
            return None
        return next((name for name, memory in self._parts.items() if value.data_ptr() in memory), None)

    def _layers(self, weight: Tensor) -> list[nn.Module]:
        """Return the layers whose weight this is: one, or those of all experts."""
        part = self._part(weight)
        assert part is not None
        if weight.dim() == 3:
            return [self._experts.layer(index, part) for index in range(len(weight))]
        whole = self._experts.__dict__["fused"].get_parameter(part)
        return [self._experts.layer((weight.storage_offset() - whole.storage_offset()) // whole.stride(0), part)]

    def _differentiable(self, weight: Tensor) -> Tensor:
        """Return a weight as a view of the layers' own, of which gradients may be asked."""
        own = [layer.get_parameter("weight") for layer in self._layers(weight)]
        if weight.dim() == 2:
            return own[0].as_strided(weight.shape, weight.stride(), weight.storage_offset())
        views = (o.as_strided(w.shape, w.stride(), w.storage_offset()) for o, w in zip(own, weight, strict=True))
        return torch.stack(list(views))

    def _seen(self, by_linear: bool, x: Tensor, weight: Tensor, out: Tensor) -> None:
        """Tell the layers of a product."""
        if not self._part(weight):  # a stack that gradients flow through; nobody listens then
            return
        layers = self._layers(weight)
        if weight.dim() == 3:
            for layer, rows, made in zip(layers, x, out, strict=True):
                routed = (rows != 0).any(-1)  # a token that is not this expert's is zeros
                self._tell(layer, rows[routed], made[routed])
            return
        turned = (weight.stride(-1) == 1) != by_linear
        if min(weight.shape) > 1 and turned != isinstance(layers[0], Conv1D):
            raise LowdimError(
                f"{type(self._experts.__dict__['fused']).__name__}.{self._part(weight)} is not laid out as its shape "
                "and its is_transposed say: inputs and outputs are the other way round. Leave it out with "
                "targets.exclude"
            )
        if self._last is None or self._last[0] is not layers[0] or self._last[1] is not x:
            self._last = layers[0], x
            self._tell(layers[0], x.reshape(-1, x.shape[-1]), out.reshape(-1, out.shape[-1]))

    def _tell(self, layer: nn.Module, rows: Tensor, made: Tensor) -> None:
        if self._marked:
            real = ~rows[:, 0].isnan()
            rows, made = rows[real], made[real]
        if len(rows):
            layer.__dict__["forward"] = lambda _: made
            layer(rows)


def _view(weight: Tensor, turned: bool) -> nn.Module:
    """Return a layer around a weight, which is told what it computes."""
    layer: nn.Module = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    if turned:
        with torch.device("meta"):
            layer = Conv1D(weight.shape[1], weight.shape[0])
        layer.register_parameter("bias", None)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer


@contextmanager
def opened(block: nn.Module) -> Iterator[list[OpenExperts]]:
    """Open every module of a block that stacks experts; the modules, with the writes made, are back afterwards."""
    swapped: list[tuple[nn.Module, str, nn.Module]] = []
    lists: list[OpenExperts] = []
    try:
        for name, parts in stacks(block).items():
            if not name:  # parameters of the block itself, which has no place to be swapped in
                continue
            owner, _, own = name.rpartition(".")
            parent, fused = block.get_submodule(owner), block.get_submodule(name)
            lists.append(OpenExperts(fused, parts))
            swapped.append((parent, own, fused))
            setattr(parent, own, lists[-1])
        yield lists
    finally:
        for parent, own, fused in swapped:
            setattr(parent, own, fused)

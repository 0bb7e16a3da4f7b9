"""SLoRB: a narrow dense product beside a sparse linear layer, fed with sums of neighbouring inputs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lowdim.core.errors import LowdimError, suggest
from lowdim.nn.stock import refuse_to_save

NAME = "slorb"
"""The attribute of a linear layer that holds its `SLoRB`, so that its tensors are ``LAYER.slorb.s`` and ``.p``."""
NOT_STOCK = (
    "a model with SLoRB cannot be saved as a stock one, which would compute without it. Take it off with "
    "lowdim.nn.slorb.detach, save the rest, and join the two in lowdim.models.disk.convert.convert(..., beside=...)"
)
"""Why it refuses ``save_pretrained``."""


class SLoRB(nn.Module):
    """y = S (P x): S is trained, [out, in / k], and P adds up every k neighbouring inputs.

    P is never a matrix: (P x)_i is the sum of x_j, or of p_j x_j where ``trains_p``, over the inputs j from i k to
    i k + k - 1. The authors' code trains P as a dense [in / k, in] matrix, of which only these entries are not zero at
    first; here the others stay zero, so that p has one number per input. S = 0 adds nothing.

    Paper: "Pruning Large Language Models with Semi-Structural Adaptive Sparse Training", AAAI 2025, arXiv 2407.20584.

    Args:
        in_features: inputs of the layer, a multiple of k.
        out_features: outputs of the layer.
        k: inputs that are added up.
        trains_p: whether p is there, ones at first.
        dtype: of S and p.
        device: of S and p.

    Raises:
        LowdimError: k does not divide the inputs.

    Example:
        >>> beside = SLoRB(4, 1, k=2)
        >>> _ = beside.s.data.copy_(torch.tensor([[1.0, 10.0]]))
        >>> beside(torch.tensor([1.0, 2.0, 3.0, 4.0])).tolist(), beside.nbytes, beside.multiply_adds
        ([73.0], 8, 2)
    """

    p: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        k: int,
        trains_p: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if k < 1 or in_features % k:
            fits = [size for size in (64, 32, 16, 8, 4, 2) if in_features % size == 0]
            raise LowdimError(
                f"SLoRB adds up k={k} inputs at a time, which does not divide {in_features}; choose a k that does"
                f"{f', such as {fits[0]}' if fits else ''}, or leave the layer out"
            )
        self.k = k
        self.s = nn.Parameter(torch.zeros(out_features, in_features // k, dtype=dtype, device=device))
        ones = nn.Parameter(torch.ones(in_features, dtype=dtype, device=device)) if trains_p else None
        self.register_parameter("p", ones)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in] to [..., out]."""
        weighed = x if self.p is None else x * self.p
        return nn.functional.linear(weighed.unflatten(-1, (-1, self.k)).sum(-1), self.s)

    @property
    def nbytes(self) -> int:
        """Bytes of S and p."""
        return sum(parameter.nbytes for parameter in self.parameters())

    @property
    def multiply_adds(self) -> int:
        """Multiplications with an addition per token: those of S, and one per input for p; plain sums do not count."""
        return self.s.numel() + (0 if self.p is None else self.p.numel())

    def extra_repr(self) -> str:
        """Return the sizes."""
        out, segments = self.s.shape
        return f"in_features={segments * self.k}, out_features={out}, k={self.k}, trains_p={self.p is not None}"


def pruned_blocks(weight: Tensor, mask: Tensor, k: int, how: str = "mean") -> Tensor:
    """Return S as it is at first: what is pruned of each row and k inputs, added up, fp32 [out, in / k].

    Args:
        weight: [out, in], before pruning.
        mask: bool [out, in], True = kept.
        k: inputs of a block.
        how: "mean" divides by all k, the kept ones included: inputs that are alike within a block then lose nothing.
            "sum" does not, and gives them back k times what they lost.

    Example:
        >>> weight = torch.tensor([[4.0, 1.0, -3.0, 2.0]])
        >>> mask = torch.tensor([[True, False, True, False]])
        >>> [pruned_blocks(weight, mask, 4, how).item() for how in ("mean", "sum")]
        [0.75, 3.0]
    """
    pruned = weight.detach().float().masked_fill(mask.to(weight.device), 0.0)
    blocks: Tensor = pruned.reshape(len(weight), -1, k)
    return blocks.mean(-1) if how == "mean" else blocks.sum(-1)


def attach(layer: nn.Module, beside: SLoRB) -> None:
    """Let a linear layer add what a `SLoRB` makes of its input.

    The layer keeps its class and its weight; the sum is a forward hook, which copies of the layer have too. Whatever
    reads the weight alone and replaces the layer (merging, packing, native decoding) must leave such layers alone.

    Raises:
        LowdimError: the layer has one already.
    """
    if NAME in layer._modules:
        raise LowdimError(f"{type(layer).__name__} has a SLoRB already; a second one would change nothing but its size")
    layer.add_module(NAME, beside)
    layer.register_forward_hook(_add)


def _add(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    added: Tensor = layer._modules[NAME](inputs[0])  # type: ignore[misc]
    return output + added


def hand_over(old: nn.Module, new: nn.Module) -> None:
    """Let a layer that takes the place of another one add what that one added, if it did."""
    beside = old._modules.get(NAME)
    if isinstance(beside, SLoRB):
        attach(new, beside)


def detach(model: nn.Module) -> dict[str, Tensor]:
    """Take away all that stands beside the layers of a model, which then computes without it.

    Returns:
        The tensors, by the names that they had in the model.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 1, bias=False))
        >>> _ = add_slorb(model, {"0": torch.ones(1, 4, dtype=torch.bool)}, k=2)
        >>> detach(model), slorb_of(model)
        ({'0.slorb.s': tensor([[0., 0.]])}, {})
    """
    found = slorb_of(model)
    for name in found:
        layer = model.get_submodule(name)
        for key in [key for key, hook in layer._forward_hooks.items() if hook is _add]:
            del layer._forward_hooks[key]
        del layer._modules[NAME]
    if found:
        model.__dict__.pop("save_pretrained", None)
    return {f"{n}.{NAME}.{part}": p.detach() for n, each in found.items() for part, p in each.named_parameters()}


def add_slorb(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    k: int,
    *,
    init: str = "mean",
    trains_p: bool = False,
    transposed: Collection[str] = (),
) -> dict[str, nn.Parameter]:
    """Put a `SLoRB` beside linear layers of a model, in place, and let it begin with what is pruned of their weights.

    Their weights must still be there: do this before they are masked, that is before the ``Loop`` is made, and before
    the optimizer, which trains what is returned. A layer that was pruned before begins with S = 0. The model then
    refuses ``save_pretrained``.

    Args:
        model: that holds the layers.
        masks: by name of a layer or of its weight, True = kept, in the weight's shape.
        k: inputs that are added up; it divides the inputs of every layer.
        init: "mean" or "sum"; see `pruned_blocks`.
        trains_p: whether the weights of the sums are trained too.
        transposed: which of these names have their weight as [in, out].

    Returns:
        The new parameters, by the names that they have in the model.

    Raises:
        LowdimError: a name is no linear layer of the model, or k does not divide its inputs; nothing has been changed.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 1, bias=False))
        >>> list(add_slorb(model, {"0.weight": torch.tensor([[True, False, True, False]])}, k=4, trains_p=True))
        ['0.slorb.s', '0.slorb.p']
    """
    made: dict[str, SLoRB] = {}
    for name, mask in masks.items():
        layer = _layer(model, name)
        weight, kept = (tensor.t() if name in transposed else tensor for tensor in (layer.weight, mask))
        try:
            beside = SLoRB(weight.shape[1], weight.shape[0], k, trains_p, weight.dtype, weight.device)
        except LowdimError as error:
            raise LowdimError(f"{name}: {error}") from error
        with torch.no_grad():
            beside.s.copy_(pruned_blocks(weight, kept, k, init))
        made[name.removesuffix(".weight")] = beside
    for name, beside in made.items():
        attach(model.get_submodule(name), beside)
    refuse_to_save(model, NOT_STOCK)
    return {f"{n}.{NAME}.{part}": p for n, beside in made.items() for part, p in beside.named_parameters()}


def _layer(model: nn.Module, name: str) -> Any:
    """Return the layer of a name, which must have a matrix as its weight and no SLoRB yet."""
    path = name.removesuffix(".weight")
    modules = dict(model.named_modules())
    layer = modules.get(path)
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() != 2:
        known = [each for each, module in modules.items() if isinstance(module, nn.Linear)]
        raise LowdimError(f"SLoRB stands beside a linear layer, and {name!r} is none. {suggest(path, known)}")
    if layer is not None and NAME in layer._modules:
        raise LowdimError(f"{path} has a SLoRB already")
    return layer


def slorb_of(model: nn.Module) -> dict[str, SLoRB]:
    """Return what stands beside the layers of a model, by the layers' names.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 1, bias=False))
        >>> _ = add_slorb(model, {"0": torch.ones(1, 4, dtype=torch.bool)}, k=2)
        >>> [(name, each.nbytes, each.multiply_adds) for name, each in slorb_of(model).items()]
        [('0', 8, 2)]
    """
    return {
        name.rpartition(".")[0]: module
        for name, module in model.named_modules()
        if isinstance(module, SLoRB) and name.rpartition(".")[2] == NAME
    }

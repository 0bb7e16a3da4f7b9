"""AdamW whose two means are stored in 8 bits, on any device."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from lowdim.core.errors import CheckpointError, LowdimError
from lowdim.train.optimizers.base import loss_of

BLOCK = 256
CHUNK = BLOCK << 11
"""Entries that are decoded at a time."""
LEAST = 4096
"""Entries of a weight below which its state stays fp32."""


@cache
def levels(signed: bool) -> Tensor:
    """Return the 256 values of a code, ascending: dense at 0, with seven powers of ten below 1.

    The power 10^-e (e = 0..6) has 2^(6-e) values of either sign, or 2^(7-e) without signs, evenly over its decade; 0
    and 1 are values too. Source: dynamic tree quantisation, "8-bit Optimizers via Block-wise Quantization", arXiv
    2110.02861.

    Example:
        >>> len(levels(True)), float(levels(True).min()) < -0.99, bool((levels(False) >= 0).all())
        (256, True, True)
    """
    found = [0.0, 1.0]
    for power in range(7):
        edges = torch.linspace(0.1, 1.0, 2 ** (6 - power + (not signed)) + 1, dtype=torch.float64)
        middles = (edges[1:] + edges[:-1]) / 2 * 10.0**-power
        found += [*middles.tolist(), *((-middles).tolist() if signed else ())]
    return torch.tensor(sorted(found), dtype=torch.float32)


def encode(values: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
    """Return the nearest code of every value, relative to the largest magnitude of its block of 256, and these.

    Args:
        values: fp32, any shape.
        signed: whether there are values below 0.

    Returns:
        uint8 of the shape; fp32 [blocks].

    Example:
        >>> codes, largest = encode(torch.tensor([0.0, 0.5, -2.0]), True)
        >>> [round(value, 2) for value in decode(codes, largest, True).tolist()]
        [0.0, 0.5, -1.99]
    """
    flat = values.flatten()
    blocks = torch.nn.functional.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)
    largest = blocks.abs().amax(1)
    table = levels(signed).to(values.device)
    scaled = blocks / torch.where(largest > 0, largest, 1.0)[:, None]
    codes = torch.bucketize(scaled, (table[1:] + table[:-1]) / 2).to(torch.uint8)
    return codes.view(-1)[: len(flat)].view(values.shape), largest


def decode(codes: Tensor, largest: Tensor, signed: bool) -> Tensor:
    """Return the fp32 values of codes."""
    wide = levels(signed).to(codes.device)[codes.flatten().int()]
    blocks = largest[: -(-len(wide) // BLOCK)]
    return wide.mul_(blocks.repeat_interleave(BLOCK)[: len(wide)]).view(codes.shape)


class AdamW8bit(Optimizer):
    """AdamW with the means of G and of G^2 stored as 8-bit codes and one fp32 number per 256 of them.

    A weight takes 2 * (1 + 4/256) bytes of state per entry instead of 8. Weights of fewer than 4,096 entries (norms,
    biases) keep fp32 means. Every step decodes, updates in fp32 and encodes again.

    Paper: "8-bit Optimizers via Block-wise Quantization", arXiv 2110.02861.

    Args:
        params: parameters, or groups of them.
        lr: learning rate.
        betas: how long the two means remember.
        eps: added to the root of the second.
        weight_decay: decoupled.

    Raises:
        LowdimError: a weight is sharded: codes of a block cannot be cut.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        settings = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**settings, "decoupled_weight_decay": True})
        if any(isinstance(p, DTensor) for group in self.param_groups for p in group["params"]):
            raise LowdimError("8-bit state holds blocks that shards would cut. Take an inner optimizer of 32 bits.")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; return what the closure returns."""
        loss = loss_of(closure)
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, group)
        return loss

    def _update(self, p: Tensor, group: dict[str, Any]) -> None:
        assert p.grad is not None
        state = self.state[p]
        step = state["step"] = state.get("step", 0) + 1
        weights, gradients = p.contiguous().view(-1), p.grad.reshape(-1)
        coded = p.numel() >= LEAST
        if step == 1:
            self._begin(state, p, coded)
        beta1, beta2 = group["betas"]
        lr, room = float(group["lr"]), (1.0 - beta2**step) ** 0.5
        for at in range(0, p.numel(), CHUNK):  # what is decoded is never more than a part of the weight
            some = slice(at, at + CHUNK)
            gradient = gradients[some].float()
            first, second = (_read(state, name, some, coded) for name in ("mean", "square"))
            first.lerp_(gradient, 1.0 - beta1)
            second.mul_(beta2).addcmul_(gradient, gradient, value=1.0 - beta2)
            change = first / (second.sqrt().div_(room).add_(group["eps"]))
            part = weights[some]
            part.mul_(1.0 - lr * group["weight_decay"]).sub_(change.mul_(lr / (1.0 - beta1**step)).to(p.dtype))
            for name, value in (("mean", first), ("square", second)) if coded else ():
                _write(state, name, some, value)
        if not p.is_contiguous():
            p.copy_(weights.view(p.shape))

    @staticmethod
    def _begin(state: dict[str, Any], p: Tensor, coded: bool) -> None:
        for name in ("mean", "square"):
            if coded:
                zero = int(encode(torch.zeros(1), name == "mean")[0])
                state[name] = torch.full(p.shape, zero, dtype=torch.uint8, device=p.device)
                state[f"{name}_largest"] = torch.zeros(-(-p.numel() // BLOCK), device=p.device)
            else:
                state[name] = torch.zeros(p.shape, dtype=torch.float32, device=p.device)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a ``state_dict``; codes stay codes."""
        super().load_state_dict({**state_dict, "state": {}})
        restore(self, state_dict)


def _read(state: dict[str, Any], name: str, some: slice, coded: bool) -> Tensor:
    """Return entries of a mean, fp32; of one that is not coded as they lie, to be written to."""
    kept: Tensor = state[name].view(-1)[some]
    if not coded:
        return kept
    return decode(kept, state[f"{name}_largest"][some.start // BLOCK :], name == "mean")


def _write(state: dict[str, Any], name: str, some: slice, value: Tensor) -> None:
    """Encode entries of a mean."""
    codes, largest = encode(value, name == "mean")
    state[name].view(-1)[some] = codes
    state[f"{name}_largest"][some.start // BLOCK :][: len(largest)] = largest


def refuse_other(optimizer: Optimizer, state_dict: dict[str, Any], key: str, without: str) -> None:
    """Refuse a state that was saved with other settings.

    Args:
        optimizer: that is to go on from it.
        state_dict: the state.
        key: of every group's settings.
        without: what an optimizer is whose groups have none.

    Raises:
        CheckpointError: they differ.
    """
    for mine, saved in zip(optimizer.param_groups, state_dict["param_groups"], strict=False):
        if mine[key] != saved.get(key):
            raise CheckpointError(
                f"the state is of {saved.get(key) or without}; this one has {mine[key]}. Use the same settings."
            )


def restore(optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
    """Give the weights of an optimizer their saved state, every tensor in its own dtype, on the weight's device.

    ``Optimizer.load_state_dict`` casts all tensors to the dtype of the weight, which codes do not survive. Counts of
    steps stay where they were, unless they are of a kind that must be with the weight.
    """
    saved = [i for group in state_dict["param_groups"] for i in group["params"]]
    own = [(p, group) for group in optimizer.param_groups for p in group["params"]]
    for index, (p, group) in zip(saved, own, strict=True):
        moves = group.get("fused") or group.get("capturable")
        for key, value in state_dict["state"].get(index, {}).items():
            if isinstance(value, Tensor):
                value = value.to(p.device if value.dim() or moves else value.device, copy=True)
            optimizer.state[p][key] = value

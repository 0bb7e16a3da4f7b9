"""Losses of rows of logits, and their gradients in the place of the logits, without a new tensor of that size."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from lowdim.train.objectives import native

NO_LABEL = -100


@dataclass(eq=False)
class Scratch:
    """Memory that is taken once and used again and again, by name; it grows as needed."""

    held: dict[str, Tensor] = field(default_factory=dict)

    def take(self, name: str, rows: int, cols: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return a matrix that holds anything; it is the caller's until the name is asked for again."""
        found = self.held.get(name)
        if found is None or found.dtype != dtype or found.device != device or len(found) < rows * cols:
            self.held[name] = found = torch.empty(rows * cols, dtype=dtype, device=device)
        return found[: rows * cols].view(rows, cols)


@dataclass(frozen=True)
class Parts:
    """How much each part of a row's loss weighs, and the temperature of the first."""

    kl: float
    ce: float
    temperature: float


def differentiate_(
    student: Tensor, teacher: Tensor | None, labels: Tensor | None, parts: Parts, scratch: Scratch
) -> tuple[Tensor, Tensor]:
    """Turn logits into the gradients of their rows' losses, in place; return KL and cross entropy, fp32 ``[n]`` each.

        KL = sum_v q_v (log q_v - log s_v),  q, s = softmax(Q / T), softmax(S / T);  CE = -log softmax(S)_label
        S <- d (kl T^2 KL + ce CE) / dS

    Where q_v is 0 nothing is added, whatever s_v is.

    Args:
        student: S ``[n, V]``.
        teacher: Q ``[n, V]``; None adds no KL.
        labels: ids, int64 ``[n]``, or -100 for none; None adds no cross entropy.
        parts: the weights kl and ce, and T.
        scratch: three matrices ``[n, V]`` are taken from it where there is no kernel.
    """
    if native.usable(student, teacher):
        return native.differentiate_(student, teacher, labels, parts.kl, parts.ce, parts.temperature)
    return differentiate_plainly_(student, teacher, labels, parts, scratch)


def differentiate_plainly_(
    student: Tensor, teacher: Tensor | None, labels: Tensor | None, parts: Parts, scratch: Scratch
) -> tuple[Tensor, Tensor]:
    """Do the same in plain torch, on any device and in any dtype."""
    dtype = torch.promote_types(student.dtype, torch.float32)
    n, words = student.shape
    one, two, three = (scratch.take(name, n, words, dtype, student.device) for name in ("one", "two", "three"))
    kl, ce = (torch.zeros(len(student), dtype=dtype, device=student.device) for _ in range(2))
    if teacher is None:
        three.zero_()
    else:
        heat = parts.temperature
        torch.log_softmax(one.copy_(teacher).div_(heat), -1, out=two)
        torch.log_softmax(one.copy_(student).div_(heat), -1, out=three)
        torch.exp(two, out=one)
        kl = two.sub_(three).masked_fill_(one == 0, 0).mul_(one).sum(-1)
        three.exp_().sub_(one).mul_(parts.kl * heat)
    if labels is not None:
        torch.log_softmax(one.copy_(student), -1, out=two)
        counted, at = labels != NO_LABEL, labels.clamp(min=0)[:, None]
        ce = -two.gather(1, at)[:, 0] * counted
        two.exp_().scatter_add_(1, at, two.new_full(at.shape, -1.0))
        three.add_(two.mul_(parts.ce * counted[:, None]))
    student.copy_(three)
    return kl, ce

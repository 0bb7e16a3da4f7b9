"""The divergence of a student from its teacher, and the student's gradient, without the logits of a whole batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lowdim.core.errors import LowdimError
from lowdim.train.objectives.rows import NO_LABEL, Parts, Scratch, differentiate_

CHUNK = 128


@dataclass(frozen=True, eq=False)
class Side:
    """What makes a network's logits ``[n, V]``: hidden states and a head, or the logits themselves, without one.

    Attributes:
        states: hidden states ``[n, D]``, or logits ``[n, V]``.
        weight: the head's ``[V, D]``, or None.
        bias: the head's ``[V]``, or None.
    """

    states: Tensor
    weight: Tensor | None = None
    bias: Tensor | None = None

    @property
    def vocabulary(self) -> int:
        """V, the entries of a row of logits."""
        return self.states.shape[-1] if self.weight is None else self.weight.shape[0]

    def logits(self, begin: int, end: int, name: str, scratch: Scratch) -> Tensor:
        """Return the logits of rows ``begin`` to ``end - 1`` in memory of their own."""
        states = self.states[begin:end]
        dtype = states.dtype if self.weight is None else self.weight.dtype
        out = scratch.take(name, len(states), self.vocabulary, dtype, states.device)
        if self.weight is None:
            return out.copy_(states)
        torch.mm(states.to(dtype), self.weight.t(), out=out)
        return out if self.bias is None else out.add_(self.bias)

    def rows(self, kept: Tensor) -> Side:
        """Return what makes the logits of some rows, marked by a bool tensor ``[n]``."""
        return Side(self.states[kept], self.weight, self.bias)

    def words(self, count: int) -> Side:
        """Return what makes the logits of the first ``count`` words alone.

        Example:
            >>> Side(torch.zeros(2, 3), torch.ones(5, 3)).words(4).vocabulary
            4
        """
        if count == self.vocabulary:
            return self
        if self.weight is None:
            return Side(self.states[:, :count])
        return Side(self.states, self.weight[:count], None if self.bias is None else self.bias[:count])


def divergence(
    student: Side,
    teacher: Side | None,
    labels: Tensor | None = None,
    *,
    kl: float = 1.0,
    ce: float = 0.0,
    temperature: float = 1.0,
    chunk: int = CHUNK,
    scratch: Scratch | None = None,
) -> Tensor:
    """Return a student's mean loss over n tokens: how far it is from its teacher, and from the labels.

        1/n sum_i [ kl T^2 sum_v q_iv (log q_iv - log s_iv) - ce log softmax(S_i)_label ]

    q and s are the softmaxes of the logits over T. A token without a label adds no cross entropy, and is counted.
    The gradient is computed along with the loss, ``chunk`` tokens at a time, so that no more logits are held; the
    teacher gets none. There is no second derivative.

    Paper: "Distilling the Knowledge in a Neural Network", 2015, arXiv 1503.02531, whose T^2 it is.

    Args:
        student: what the gradient goes to: its states, and the head's weight and bias where they require it.
        teacher: any width, the same vocabulary; None where ``kl`` is 0.
        labels: the next tokens, int64 ``[n]``, -100 where there is none; None where ``ce`` is 0.
        kl: weight of the divergence.
        ce: weight of the cross entropy.
        temperature: T, of the divergence alone.
        chunk: tokens whose logits are held at once.
        scratch: memory to be used again in the next call.

    Raises:
        LowdimError: no tokens, two vocabularies, two numbers of tokens, or a label that is no token.

    Example:
        >>> same = Side(torch.tensor([[0.0, 1.0, 2.0]]))
        >>> float(divergence(same, same))
        0.0
    """
    _check(student, teacher, labels)
    run = _Run(teacher if kl else None, labels if ce else None, Parts(kl, ce, temperature), chunk, scratch or Scratch())
    loss: Tensor = _Divergence.apply(  # type: ignore[no-untyped-call]
        student.states, student.weight, student.bias, run
    )
    return loss


@torch.no_grad()
def divergences(student: Side, teacher: Side, *, chunk: int = CHUNK, scratch: Scratch | None = None) -> Tensor:
    """Return how far a student is from its teacher at each of n tokens, KL(teacher || student), fp32 ``[n]``.

    Nothing gets a gradient; arguments are those of `divergence`.

    Raises:
        LowdimError: no tokens, two vocabularies, or two numbers of tokens.

    Example:
        >>> half, most = (Side(torch.tensor([row]).log()) for row in ([0.5, 0.5], [0.9, 0.1]))
        >>> round(divergences(most, half).item(), 4)
        0.5108
    """
    _check(student, teacher, None)
    scratch, found = scratch or Scratch(), []
    for begin in range(0, len(student.states), chunk):
        end = min(begin + chunk, len(student.states))
        one, other = (
            side.logits(begin, end, name, scratch) for side, name in ((student, "student"), (teacher, "teacher"))
        )
        found.append(differentiate_(one, other, None, Parts(1.0, 0.0, 1.0), scratch)[0].float())
    return torch.cat(found)


def _check(student: Side, teacher: Side | None, labels: Tensor | None) -> None:
    tokens, words = len(student.states), student.vocabulary
    if not tokens:
        raise LowdimError("there is no token to be counted, so the loss has no mean; leave such batches out")
    if teacher is not None and teacher.vocabulary != words:
        raise LowdimError(two_vocabularies(words, teacher.vocabulary))
    for name, given in (("teacher", None if teacher is None else teacher.states), ("labels", labels)):
        if given is not None and len(given) != tokens:
            raise LowdimError(f"the student has {tokens} tokens and {name} {len(given)}; give one for each")
    if labels is not None and bool(((labels != NO_LABEL) & ((labels < 0) | (labels >= words))).any()):
        raise LowdimError(f"labels must be {NO_LABEL}, for none, or from 0 to {words - 1}")


def two_vocabularies(student: int, teacher: int) -> str:
    """Return the sentence that refuses a teacher with other words than the student's."""
    return (
        f"the student has a vocabulary of {student} and the teacher one of {teacher}, which have to "
        "be one. Take a teacher with the student's tokenizer; where only padding differs, make both equal with "
        "resize_token_embeddings"
    )


@dataclass(frozen=True, eq=False)
class _Run:
    teacher: Side | None
    labels: Tensor | None
    parts: Parts
    chunk: int
    scratch: Scratch


class _Divergence(torch.autograd.Function):
    """The loss, whose gradient is computed on the way forward."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor | None, bias: Tensor | None, run: _Run) -> Tensor:
        side, parts = Side(states, weight, bias), run.parts
        sums = Sums(side, ctx.needs_input_grad)
        losses = []
        for begin in range(0, len(states), run.chunk):
            end = min(begin + run.chunk, len(states))
            student = side.logits(begin, end, "student", run.scratch)
            teacher = None if run.teacher is None else run.teacher.logits(begin, end, "teacher", run.scratch)
            labels = None if run.labels is None else run.labels[begin:end]
            kl, ce = differentiate_(student, teacher, labels, parts, run.scratch)
            losses.append(parts.kl * parts.temperature**2 * kl.double() + parts.ce * ce.double())
            sums.add(student, begin, end, run.scratch)
        ctx.save_for_backward(sums.states, sums.weight, sums.bias)
        ctx.tokens, ctx.dtypes = len(states), [None if x is None else x.dtype for x in (states, weight, bias)]
        return torch.cat(losses).mean().to(torch.promote_types(states.dtype, torch.float32))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise LowdimError(
                "the divergence has first derivatives only; for gradients of gradients (create_graph=True) write it "
                "with torch's log_softmax"
            )
        scale = g / ctx.tokens
        found = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        return *(None if total is None else (total * scale).to(dtype) for total, dtype in found), None


class Sums:
    """The gradients of the sum of all losses by the states, the head's weight and its bias; None where not needed."""

    def __init__(self, side: Side, needed: tuple[bool, ...]) -> None:
        def room(of: Tensor | None, dtype: torch.dtype) -> Tensor:
            assert of is not None  # None needs no gradient
            return torch.zeros(of.shape, dtype=dtype, device=of.device)

        self.side = side
        narrow = side.states.dtype if side.weight is None else side.weight.dtype
        wide = torch.promote_types(narrow, torch.float32)
        self.states = room(side.states, narrow) if needed[0] else None
        self.weight, self.bias = (
            room(part, wide) if need else None for part, need in zip((side.weight, side.bias), needed[1:3], strict=True)
        )

    def add(self, gradients: Tensor, begin: int, end: int, scratch: Scratch) -> None:
        """Add those of some rows, given the gradients ``[end - begin, V]`` by their logits."""
        head = self.side.weight
        if self.states is not None:
            if head is None:
                self.states[begin:end] = gradients
            else:
                torch.mm(gradients, head, out=self.states[begin:end])
        if self.weight is not None and head is not None:
            product = scratch.take("head", len(head), head.shape[1], head.dtype, head.device)
            torch.mm(gradients.t(), self.side.states[begin:end].to(head.dtype), out=product)
            self.weight += product
        if self.bias is not None:
            self.bias += gradients.sum(0)

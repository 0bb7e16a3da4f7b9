"""The papers' algorithms once more, written for the reader and not for speed; nothing of the package is used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

Rule = Callable[[Tensor, Tensor], Tensor]
"""``rule(weight fp64 [out, in], inputs fp64 [tokens, in]) -> new weight``."""


@torch.no_grad()
def walk(
    model: PreTrainedModel,
    blocks: nn.ModuleList,
    ids: Tensor,
    rule: Rule,
    mask: Tensor | None = None,
    groups: Sequence[Sequence[str]] = ((".",),),
) -> None:
    """Prune block after block; the whole model runs for every group of a block's matrices, with hooks on them.

    A group is given by parts of its members' names, to which a dot is added in front; the dot alone means all.
    """
    options = {} if mask is None else {"attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
    real = torch.ones(ids.shape, dtype=torch.bool) if mask is None else mask.bool()
    for block, group in product(blocks, groups):
        named = [(f".{name}", m) for name, m in block.named_modules() if isinstance(m, nn.Linear | Conv1D)]
        layers = [m for name, m in named if any(part in name for part in group)]
        seen: dict[nn.Module, Tensor] = {}

        def note(module: nn.Module, args: tuple[Tensor, ...], seen: dict[nn.Module, Tensor] = seen) -> None:
            x = args[0].reshape(real.numel(), -1)
            seen[module] = x[real.reshape(-1)].double()

        hooks = [layer.register_forward_pre_hook(note) for layer in layers]
        model(input_ids=ids, use_cache=False, **options)
        for hook in hooks:
            hook.remove()
        for layer in layers:
            turned = isinstance(layer, Conv1D)
            weight = layer.weight.t() if turned else layer.weight
            made = rule(weight.double(), seen[layer])
            layer.weight.copy_(made.t() if turned else made)


def lowest(scores: Tensor, count: int) -> Tensor:
    """Mark the ``count`` smallest of every row (or of a vector), the later of equals first."""
    order = scores.sort(dim=-1, descending=True, stable=True).indices
    marked = torch.zeros(scores.shape, dtype=torch.bool)
    return marked.scatter_(-1, order[..., scores.shape[-1] - count :], True)


def wanda(sparsity: float) -> Rule:
    def rule(weight: Tensor, x: Tensor) -> Tensor:
        scores = weight.abs() * x.square().sum(0).sqrt()
        return weight.masked_fill(lowest(scores, int(scores.shape[1] * sparsity)), 0.0)

    return rule


def wanda_nm(keep: int, group: int) -> Rule:
    def rule(weight: Tensor, x: Tensor) -> Tensor:
        scores = (weight.abs() * x.square().sum(0).sqrt()).reshape(-1, group)
        return weight.masked_fill(lowest(scores, group - keep).reshape(weight.shape), 0.0)

    return rule


def magnitude(sparsity: float) -> Rule:
    def rule(weight: Tensor, x: Tensor) -> Tensor:
        count = round(weight.numel() * sparsity)
        return weight.masked_fill(lowest(weight.abs().reshape(-1), count).reshape(weight.shape), 0.0)

    return rule


def hessian(x: Tensor, damping: float) -> Tensor:
    h = x.t() @ x / len(x)
    dead = h.diagonal() == 0
    h = h + damping * h.diagonal().mean() * torch.eye(len(h), dtype=h.dtype)
    h[dead, dead] = 1.0
    return h


def upper_factor(h: Tensor) -> Tensor:
    return torch.linalg.cholesky(torch.linalg.inv(h), upper=True)


def sparsegpt(
    weight: Tensor,
    h: Tensor,
    select: Callable[[int, Tensor, Tensor], Tensor | None],
    rounded: Callable[[int, Tensor], Tensor] = lambda j, column: column,
) -> tuple[Tensor, Tensor, float]:
    """Sweep the columns one by one, without blocks, in fp64.

    Args:
        weight: ``[out, in]``.
        h: damped Hessian.
        select: called before every column ``j`` with ``j``, the weights as they are and the diagonal of ``U``; returns
            the pruned entries of the next columns, or None to go on with those it returned before.
        rounded: rounds the weights of column ``j``.

    Returns:
        The weights, what was pruned, and the loss ``sum (w - q)^2 / U_jj^2``.
    """
    w, u = weight.double().clone(), upper_factor(h.double())
    pruned, loss = torch.zeros(w.shape, dtype=torch.bool), 0.0
    for j in range(w.shape[1]):
        drawn = select(j, w, u.diagonal())
        if drawn is not None:
            pruned[:, j : j + drawn.shape[1]] = drawn
        q = rounded(j, w[:, j]).masked_fill(pruned[:, j], 0.0)
        error = (w[:, j] - q) / u[j, j]
        w[:, j:] -= error[:, None] * u[j, j:]
        w[:, j] = q
        loss += float(error.square().sum())
    return w, pruned, loss


def by_blocks(sparsity: float, block: int = 128) -> Callable[[int, Tensor, Tensor], Tensor | None]:
    """Draw the mask of a whole block of columns before any of them is updated."""

    def select(j: int, w: Tensor, diagonal: Tensor) -> Tensor | None:
        if j % block:
            return None
        some = slice(j, min(j + block, w.shape[1]))
        scores = (w[:, some] / diagonal[some]).square()
        return lowest(scores.reshape(-1), round(scores.numel() * sparsity)).reshape(scores.shape)

    return select


def by_groups(keep: int, group: int) -> Callable[[int, Tensor, Tensor], Tensor | None]:
    """Draw the mask of every ``group`` columns from weights updated so far."""

    def select(j: int, w: Tensor, diagonal: Tensor) -> Tensor | None:
        if j % group:
            return None
        scores = (w[:, j : j + group] / diagonal[j : j + group]).square()
        return lowest(scores, group - keep)

    return select


def given(pruned: Tensor) -> Callable[[int, Tensor, Tensor], Tensor | None]:
    return lambda j, w, diagonal: pruned if j == 0 else None


def least_squares(weight: Tensor, kept: Tensor, h: Tensor) -> Tensor:
    """Solve the kept weights of every row exactly."""
    made = torch.zeros_like(weight, dtype=torch.float64)
    for row, (w, keep) in enumerate(zip(weight.double(), kept, strict=True)):
        s = keep.nonzero()[:, 0]
        made[row, s] = torch.linalg.solve(h[s][:, s], (h @ w)[s])
    return made


def loss(change: Tensor, h: Tensor) -> float:
    return float((change @ h * change).sum())

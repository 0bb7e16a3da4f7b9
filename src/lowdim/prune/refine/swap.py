"""Swapping pruned weights for kept ones until each row's expected output error is small."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowdim.core.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

SEQUENCE = 2048
"""Tokens per sequence in the paper; its threshold is a sum over one sequence."""


@dataclass
class _Queue:
    """Per row, candidate columns in the order in which they are to be taken.

    Attributes:
        order: columns, int64 ``[rows, k]``.
        count: how many of them are real candidates, int64 ``[rows]``.
        taken: how many have been taken, int64 ``[rows]``.
    """

    order: Tensor
    count: Tensor
    taken: Tensor

    @classmethod
    def of(cls, key: Tensor, candidate: Tensor, k: int) -> _Queue:
        """Queue the ``k`` candidates of each row with the largest keys, largest first."""
        top = torch.where(candidate, key, -torch.inf).topk(k, dim=1)
        return cls(
            top.indices,
            candidate.sum(1).clamp(max=k),
            torch.zeros(len(key), dtype=torch.long, device=key.device),
        )

    def head(self) -> tuple[Tensor, Tensor]:
        """Return each row's next column and whether there is one."""
        at = self.taken.clamp(max=self.order.shape[1] - 1)
        return self.order.gather(1, at[:, None])[:, 0], self.taken < self.count

    def pass_over(self, cost: Tensor, group: int) -> None:
        """Take the heads whose group has no kept weight left."""
        while True:
            column, there = self.head()
            stuck = there & ~_cheapest_in_group(cost, column, group)[1]
            if not bool(stuck.any()):
                return
            self.taken += stuck


def _pick(positive: Tensor, one: _Queue, other: _Queue) -> tuple[Tensor, Tensor]:
    """Return, per row, the head of ``one`` where ``positive`` and of ``other`` elsewhere."""
    (a, has_a), (b, has_b) = one.head(), other.head()
    return torch.where(positive, a, b), torch.where(positive, has_a, has_b)


def swap(
    weight: Tensor,
    mask: Tensor,
    mean: Tensor,
    variance: Tensor,
    scores: Tensor,
    *,
    max_cycles: int,
    threshold: float,
    power: float,
    same_sign: bool,
    group: int = 0,
) -> Tensor:
    """Return a mask with as many kept weights per row (and per N:M group) and a smaller expected error.

    The expected error of row ``r`` over a sequence is ``e_r = sum over pruned j of C_rj`` with
    ``C_rj = W_rj * 2048 * mean_j``. While ``|e_r| > threshold`` a pruned weight with the sign of ``e_r`` is grown, the
    one with the largest ``|C| / variance^power``, and a kept weight of the other sign with the smallest score is
    pruned. A row whose proposal is refused, or that runs out of candidates, is left as it is. In an N:M pattern a
    candidate is passed over once its group has no kept weight left to give.

    Args:
        weight: fp32 ``[rows, in]``.
        mask: kept entries, bool ``[rows, in]``.
        mean: mean input per token, ``[in]``.
        variance: variance of the input over tokens, ``[in]``.
        scores: what orders the kept weights (Wanda's score; in an N:M pattern the score that drew the mask).
        max_cycles: most swaps per row.
        threshold: error at which a row is done, summed over 2048 tokens.
        power: exponent of the variance.
        same_sign: refuse a swap that turns the sign of the row's first error; N:M patterns always do.
        group: M of an N:M pattern, whose swaps stay inside a group; 0 for none.

    Example:
        >>> import torch
        >>> w, s = torch.tensor([[1.0, -2.0, 3.0, 0.5]]), torch.tensor([[1.5, 3.0, 6.0, 1.1]])
        >>> kept = torch.tensor([[False, True, True, False]])
        >>> mean, var = torch.tensor([1.0, 1.0, 0.2, 2.0]) / 2048, torch.tensor([1.0, 1.0, 1.0, 0.25])
        >>> settings = dict(max_cycles=50, threshold=0.1, power=1.0)
        >>> swap(w, kept, mean, var, s, same_sign=False, **settings)
        tensor([[False, False,  True,  True]])
        >>> swap(w, kept, mean, var, s, same_sign=True, **settings)
        tensor([[False,  True,  True, False]])

    Paper: Dynamic Sparse No Training, 2024, arXiv 2310.08915.
    """
    rows, columns = weight.shape
    k = min(max_cycles * max(1, group), columns)  # a swap leaves at most one group with nothing to give
    if k == 0:
        return mask.clone()
    contribution = weight * (mean * SEQUENCE)
    floor = torch.finfo(torch.float32).eps * variance.max()
    gain = contribution / variance.clamp_min(floor if float(floor) > 0 else 1.0).pow(power)
    grow_up = _Queue.of(gain, ~mask & (contribution > 0), k)
    grow_down = _Queue.of(-gain, ~mask & (contribution < 0), k)
    drop_low = _Queue.of(-scores, mask & (contribution < 0), k)
    drop_high = _Queue.of(-scores, mask & (contribution > 0), k)
    cost = torch.where(mask, scores, torch.inf) if group else None
    refined, error = mask.clone(), (contribution * ~mask).sum(1)
    sign = error.sign()
    active = torch.ones(rows, dtype=torch.bool, device=weight.device)
    row = torch.arange(rows, device=weight.device)
    for _ in range(max_cycles):
        positive = error > 0
        if cost is not None:
            grow_up.pass_over(cost, group)
            grow_down.pass_over(cost, group)
        grown, can_grow = _pick(positive, grow_up, grow_down)
        if cost is None:
            dropped, can_drop = _pick(positive, drop_low, drop_high)
        else:
            dropped, can_drop = _cheapest_in_group(cost, grown, group)
        proposed = error + contribution[row, dropped] - contribution[row, grown]
        active = active & can_grow & can_drop & (error.abs() > threshold)
        if same_sign or group:
            active = active & (proposed.sign() == sign)
        if not bool(active.any()):
            break
        refined[row[active], grown[active]] = True
        refined[row[active], dropped[active]] = False
        error = torch.where(active, proposed, error)
        for queue, side in (
            (grow_up, positive),
            (grow_down, ~positive),
            (drop_low, positive),
            (drop_high, ~positive),
        ):
            queue.taken += active & side
        if cost is not None:
            cost[row[active], dropped[active]] = torch.inf
    return refined


def _cheapest_in_group(cost: Tensor, grown: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """Return the cheapest kept column in the group of ``grown``, and whether one is left."""
    first = grown // group * group
    span = first[:, None] + torch.arange(group, device=cost.device)
    best = cost.gather(1, span).min(1)
    return first + best.indices, torch.isfinite(best.values)

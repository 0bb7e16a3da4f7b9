"""What every reducer of tickets is made of: a linear mix, the union of masks, an exact global prune."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lowdim.core.errors import LowdimError
from lowdim.core.masks import Masks
from lowdim.core.topk import keep_top_across
from lowdim.models.ticket import Ticket

if TYPE_CHECKING:
    from torch import Tensor


def mix(tickets: Sequence[Ticket], coefficients: Sequence[float]) -> dict[str, Tensor]:
    """Return sum_i c_i * state_i, summed in fp64 and rounded once to each tensor's dtype.

    Integer and boolean buffers (such as the batch counter of a BatchNorm) have no mean: those of the last ticket
    are taken.

    Raises:
        LowdimError: the tickets are of different models.
    """
    import torch

    check(tickets)
    mixed = {}
    for name, like in tickets[-1].state.items():
        if not (like.is_floating_point() or like.is_complex()):
            mixed[name] = like.clone()
            continue
        total = torch.zeros(like.shape, dtype=torch.promote_types(like.dtype, torch.float64))
        for ticket, coefficient in zip(tickets, coefficients, strict=True):
            if coefficient:
                total.add_(ticket.state[name], alpha=coefficient)
        mixed[name] = total.to(like.dtype)
    return mixed


def check(tickets: Sequence[Ticket]) -> None:
    """Refuse tickets that cannot be combined.

    Raises:
        LowdimError: there is none, or they differ in names, shapes or masked weights.
    """
    if not tickets:
        raise LowdimError("no tickets to combine; collect at least one")
    shapes = [{name: tuple(tensor.shape) for name, tensor in ticket.state.items()} for ticket in tickets]
    masked = [set(ticket.masks) for ticket in tickets]
    for index in range(1, len(tickets)):
        if shapes[index] != shapes[0] or masked[index] != masked[0]:
            raise LowdimError(
                f"tickets 0 and {index} differ in their tensors or in which weights are masked; combine tickets of "
                "one model only"
            )


def union(masks: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the masks of all weights that any of the given masks keeps."""
    joined = {name: masks[0][name] for name in masks[0]}
    for other in masks[1:]:
        for name in joined:
            joined[name] = joined[name] | other[name]
    return joined


def intersection(masks: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the masks of the weights that all of the given masks keep."""
    joined = {name: masks[0][name] for name in masks[0]}
    for other in masks[1:]:
        for name in joined:
            joined[name] = joined[name] & other[name]
    return joined


def iou(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float:
    """Return the weights kept by both over the weights kept by either, all layers together; 1 where none is kept.

    Example:
        >>> import torch
        >>> iou({"a": torch.tensor([True, True, False])}, {"a": torch.tensor([False, True, True])})
        0.3333333333333333
    """
    both = sum(int((first[name] & second[name]).sum()) for name in first)
    either = sum(int((first[name] | second[name]).sum()) for name in first)
    return both / either if either else 1.0


def largest(state: Mapping[str, Tensor], legal: Mapping[str, Tensor], keep: int) -> dict[str, Tensor]:
    """Return masks of the ``keep`` legal weights of largest magnitude, all layers compared together.

    Exact; of equal magnitudes the earlier layer and the lower flat index is kept. A legal zero ranks above every
    weight that is not legal.

    Raises:
        LowdimError: fewer weights than ``keep`` are legal.
        NumericalError: a weight is NaN.
    """
    import torch

    held = sum(int(mask.sum()) for mask in legal.values())
    if keep > held:
        raise LowdimError(
            f"{keep} weights are to be kept, but the tickets hold {held} between them; ask for fewer"
        )
    if keep == held:
        return dict(legal)
    scores = {name: torch.where(mask, state[name].detach().abs(), -1.0) for name, mask in legal.items()}
    return keep_top_across(scores, keep)


def blend(tickets: Sequence[Ticket], coefficients: Sequence[float], keep: int) -> Ticket:
    """Mix tickets and prune the mix to ``keep`` weights by global magnitude; with equal masks nothing is pruned.

    Tickets of coefficient 0 take no part; their masks say where zeros are kept if the others hold too few weights.

    Example:
        >>> import torch
        >>> def ticket(*weights):
        ...     weight = torch.tensor(weights)
        ...     return Ticket({"w": weight}, Masks.from_dict({"w": weight != 0}))
        >>> blend([ticket(4.0, 0.0, 1.0), ticket(0.0, 6.0, 1.0)], [0.5, 0.5], keep=2).state["w"]
        tensor([2., 3., 0.])
    """
    state = mix(tickets, coefficients)
    everyone = [ticket.masks for ticket in tickets]
    mixed = [ticket.masks for ticket, weight in zip(tickets, coefficients, strict=True) if weight] or everyone
    legal = union(mixed)
    if sum(int(mask.sum()) for mask in legal.values()) < keep:
        legal = union(everyone)
    masks = Masks.from_dict(largest(state, legal, keep))
    masks.apply_(state)
    return Ticket(state, masks, step=tickets[-1].step)


def running_average(
    tickets: Sequence[Ticket], factors: Sequence[float], keep: int, *, prune_each: bool
) -> Ticket:
    """Fold tickets one after another: average <- (1 - f_k) * average + f_k * ticket_k, beginning with the first.

    Args:
        tickets: the first is where the average begins.
        factors: f_1 ... f_n for the tickets after the first.
        keep: weights kept at the end, by global magnitude.
        prune_each: prune after every ticket instead of once at the end.
    """
    if prune_each:
        average = blend(tickets[:1], [1.0], keep)
        for ticket, factor in zip(tickets[1:], factors, strict=True):
            average = blend([average, ticket], [1 - factor, factor], keep)
        return average
    coefficients = [1.0]
    for factor in factors:
        coefficients = [*(value * (1 - factor) for value in coefficients), factor]
    return blend(tickets, coefficients, keep)


def kept_count(tickets: Sequence[Ticket], sparsity: float | None) -> int:
    """Return how many weights a combination keeps: round((1 - sparsity) * N), or as many as each ticket has.

    Raises:
        LowdimError: no sparsity is given and the tickets' counts differ, or it is outside [0, 1).
    """
    check(tickets)
    if sparsity is None:
        counts = {ticket.masks.kept() for ticket in tickets}
        if len(counts) > 1:
            raise LowdimError(
                f"the tickets keep different numbers of weights ({sorted(counts)}); give sparsity"
            )
        return counts.pop()
    if not 0 <= sparsity < 1:
        raise LowdimError(f"sparsity must be in [0, 1); got {sparsity}")
    first = tickets[0]
    return round((1 - sparsity) * sum(first.state[name].numel() for name in first.masks))

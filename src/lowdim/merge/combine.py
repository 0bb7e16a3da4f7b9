"""What every reducer of tickets is made of: a linear mix, the union of masks, an exact global prune."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from itertools import combinations
from operator import and_, or_
from typing import TYPE_CHECKING, Any

from lowdim.core.errors import LowdimError, NumericalError
from lowdim.core.lazy import torch
from lowdim.core.masks import Masks
from lowdim.core.settings import check_sparsity
from lowdim.core.topk import keep_top_across
from lowdim.models.ticket import Ticket

if TYPE_CHECKING:
    from torch import Tensor


def tensorwise(tickets: Sequence[Ticket], rule: Callable[[str], Tensor]) -> dict[str, Tensor]:
    """Return ``rule(name)`` of every tensor, rounded once to its dtype: the smallest that holds the values of all.

    Integer and boolean buffers (such as the batch counter of a BatchNorm) have no mean: those of the last are taken.
    """

    def made(name: str, tensor: Tensor) -> Tensor:
        if not (tensor.is_floating_point() or tensor.is_complex()):
            return tensor.clone()
        return rule(name).to(reduce(torch.promote_types, (ticket.state[name].dtype for ticket in tickets)))

    return {name: made(name, tensor) for name, tensor in tickets[-1].state.items()}


def weighted(tensors: Sequence[Tensor], coefficients: Sequence[float]) -> Tensor:
    """Return sum_i c_i * x_i in fp64; terms with coefficient 0 are skipped."""
    like = tensors[-1]
    total = torch.zeros(like.shape, dtype=torch.promote_types(like.dtype, torch.float64))
    for tensor, coefficient in zip(tensors, coefficients, strict=True):
        if coefficient:
            total.add_(tensor, alpha=coefficient)
    return total


def mix(tickets: Sequence[Ticket], coefficients: Sequence[float]) -> dict[str, Tensor]:
    """Return sum_i c_i * state_i, summed in fp64 and rounded once to each tensor's dtype.

    Raises:
        LowdimError: the tickets are of different models.
    """
    check(tickets, coefficients)
    return tensorwise(tickets, lambda name: weighted([t.state[name] for t in tickets], coefficients))


def check(tickets: Sequence[Ticket], coefficients: Sequence[float] | None = None) -> None:
    """Refuse tickets that cannot be combined: of several models, or with weights that are no numbers.

    Infinite entries of buffers, such as those of a mask of attention, may be there if they are the same in all. A
    ticket whose coefficient is 0 may hold anything.
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
    used = {index: ticket.state for index, ticket in enumerate(tickets) if coefficients is None or coefficients[index]}
    for name in tickets[0].state:
        for index, state in used.items():
            odd = ~state[name].isfinite()
            alike = name not in tickets[0].masks and all(
                bool((state[name] == other[name])[odd].all()) for other in used.values()
            )
            if bool(odd.any()) and not alike:
                raise NumericalError(
                    f"{name} of ticket {index} holds {int(odd.sum())} values that are NaN or infinite, which every "
                    "mean with them would hold too. Leave that ticket out, or train it again"
                )


def union(masks: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the masks of all weights that any of the given masks keeps."""
    return {name: reduce(or_, (mask[name] for mask in masks)) for name in masks[0]}


def intersection(masks: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the masks of the weights that all of the given masks keep."""
    return {name: reduce(and_, (mask[name] for mask in masks)) for name in masks[0]}


def pairwise_mean(items: Sequence[Any], measure: Callable[[Any, Any], float], *, alone: float) -> float:
    """Return the mean of a measure over all pairs, ``alone`` where there is none."""
    found = [measure(a, b) for a, b in combinations(items, 2)]
    return sum(found) / len(found) if found else alone


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
    held = sum(int(mask.sum()) for mask in legal.values())
    if keep > held:
        raise LowdimError(f"{keep} weights are to be kept, but the tickets hold {held} between them; ask for fewer")
    if keep == held:
        return dict(legal)
    scores = {name: torch.where(mask, state[name].detach().abs(), -1.0) for name, mask in legal.items()}
    return keep_top_across(scores, keep)


def blend(tickets: Sequence[Ticket], coefficients: Sequence[float], keep: int) -> Ticket:
    """Mix tickets and prune the mix to ``keep`` weights by global magnitude; with equal masks nothing is pruned.

    Tickets of coefficient 0 take no part, but their masks say where zeros are kept if the others hold too few weights.

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
    return pruned(state, legal, keep, tickets[-1].step)


def pruned(state: dict[str, Tensor], legal: Mapping[str, Tensor], keep: int, step: int | None) -> Ticket:
    """Return a ticket of the ``keep`` largest legal weights; the state becomes its own."""
    masks = Masks.from_dict(largest(state, legal, keep))
    masks.apply_(state)
    return Ticket(state, masks, step=step)


def running_average(tickets: Sequence[Ticket], factors: Sequence[float], keep: int, *, prune_each: bool) -> Ticket:
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
        LowdimError: no sparsity is given and the tickets' counts differ, or it is impossible.
    """
    check(tickets)
    if sparsity is None:
        counts = {ticket.masks.kept() for ticket in tickets}
        if len(counts) > 1:
            raise LowdimError(f"the tickets keep different numbers of weights ({sorted(counts)}); give sparsity")
        return counts.pop()
    first = tickets[0]
    return round((1 - check_sparsity(sparsity)) * sum(first.state[name].numel() for name in first.masks))

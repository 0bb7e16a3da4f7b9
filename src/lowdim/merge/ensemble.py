"""Several tickets that vote: the mean of their class probabilities."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lowdim.core.errors import LowdimError
from lowdim.merge.combine import iou, pairwise_mean
from lowdim.merge.quality import Quality, quality
from lowdim.models.norms import Forward, run
from lowdim.models.ticket import Ticket, borrowed
from lowdim.nn.blocks import evaluating


@dataclass(frozen=True, eq=False)
class Ensemble:
    """What an ensemble predicts, and how its members differ.

    Attributes:
        probabilities: fp32 [samples, classes], mean over tickets of softmax(logits).
        labels: int64 [samples].
        quality: of the mean. Its likelihood is never worse than the members' average (Jensen's inequality).
        members: of each ticket alone.
        disagreement: share of samples on which two tickets predict different classes, mean over pairs.
        overlap: intersection over union of two tickets' masks, mean over pairs.
    """

    probabilities: Tensor
    labels: Tensor
    quality: Quality
    members: tuple[Quality, ...]
    disagreement: float
    overlap: float


def predict(model: nn.Module, batches: Iterable[Any], *, forward: Forward | None = None) -> tuple[Tensor, Tensor]:
    """Return the class probabilities and labels of all batches, on the CPU.

    Args:
        model: put in eval mode for the pass, then back.
        batches: pairs (input, labels).
        forward: (model, batch) -> logits [samples, classes], where that is not ``model(batch[0])``.

    Returns:
        fp32 [samples, classes] and int64 [samples].

    Raises:
        LowdimError: there is no batch, or a batch is not a pair.
    """
    call = forward or run
    probabilities, labels = [], []
    with evaluating(model), torch.no_grad():
        for batch in batches:
            if not isinstance(batch, (tuple, list)) or len(batch) != 2:
                raise LowdimError("batches must yield pairs (input, labels)")
            probabilities.append(call(model, batch).float().softmax(dim=-1).cpu())
            labels.append(batch[1].cpu())
    if not probabilities:
        raise LowdimError("batches is empty. Was it a generator already used up?")
    return torch.cat(probabilities), torch.cat(labels)


def ensemble(
    model: nn.Module,
    tickets: Sequence[Ticket],
    batches: Iterable[Any],
    *,
    forward: Forward | None = None,
    bins: int = 15,
) -> Ensemble:
    """Predict with every ticket and average the probabilities.

    One model object is used for all tickets, one after another, and comes back as it was; held in memory are the
    running sum and the classes predicted by each ticket.

    Args:
        model: a model of the tickets' structure.
        tickets: at least one.
        batches: pairs (input, labels), the same in the same order on every pass: a list, or a loader without shuffling.
        forward: (model, batch) -> logits, where that is not ``model(batch[0])``.
        bins: of the calibration error.

    Raises:
        LowdimError: no tickets, or the passes differ in their labels.
    """
    if not tickets:
        raise LowdimError("no tickets to ask; collect at least one")
    total: Any = 0.0
    truth: Tensor | None = None
    members, classes = [], []
    with borrowed(model):
        for ticket in tickets:
            ticket.apply_(model)
            probabilities, labels = predict(model, batches, forward=forward)
            if truth is not None and not torch.equal(labels, truth):
                raise LowdimError("batches came in another order on the next pass; use a loader without shuffling")
            truth = labels
            total = total + probabilities.double()
            members.append(quality(probabilities, labels, bins=bins))
            classes.append(probabilities.argmax(dim=1))
    assert truth is not None
    mean = total / len(tickets)
    return Ensemble(
        mean.float(),
        truth,
        quality(mean, truth, bins=bins),
        tuple(members),
        pairwise_mean(classes, lambda a, b: float((a != b).double().mean()), alone=0.0),
        pairwise_mean([ticket.masks for ticket in tickets], iou, alone=1.0),
    )

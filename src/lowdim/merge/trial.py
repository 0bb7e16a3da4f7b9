"""Trying a ticket out: write it into a model, measure its norm statistics, ask a validation score."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from lowdim.core.errors import LowdimError
from lowdim.core.lazy import torch
from lowdim.models.norms import Forward, norms, refresh_norm
from lowdim.models.ticket import Ticket

Validate = Callable[["torch.nn.Module"], float]


def validated(model: torch.nn.Module, ticket: Ticket, validate: Validate) -> Ticket:
    """Return a ticket with its validation score, under its own norm statistics; NaN counts as the worst score.

    The model is left in eval mode with the ticket's weights.
    """
    ticket.apply_(model)
    model.eval()
    with torch.no_grad():
        score = float(validate(model))
    return ticket.scored(-math.inf if math.isnan(score) else score)


def refreshed(
    model: torch.nn.Module,
    ticket: Ticket,
    validate: Validate,
    batches: Iterable[Any] | None,
    forward: Forward | None = None,
) -> Ticket:
    """Return a combined ticket with norm statistics of its own and its validation score.

    Raises:
        LowdimError: the model has BatchNorm and there are no batches to measure its statistics on.
    """
    if norms(model):
        if batches is None:
            raise LowdimError(
                "the model has BatchNorm, and combined weights have no norm statistics: give batches of training data"
            )
        ticket.apply_(model)
        refresh_norm(model, batches, forward=forward)
        ticket = Ticket.of(model, ticket.masks, step=ticket.step)
    return validated(model, ticket, validate)


def value(ticket: Ticket) -> float:
    """Return the score of a ticket that has one."""
    assert ticket.score is not None
    return ticket.score

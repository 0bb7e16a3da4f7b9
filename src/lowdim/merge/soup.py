"""Soups: fine-tuned or sparse networks averaged into one, all of them or those that help."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from lowdim.core.errors import LowdimError
from lowdim.core.lazy import torch
from lowdim.merge.base import Tensorwise
from lowdim.merge.combine import kept_count, weighted
from lowdim.merge.trial import Validate, refreshed, validated, value
from lowdim.models.norms import Forward
from lowdim.models.ticket import Ticket, borrowed


@dataclass(frozen=True, eq=False)
class Cooked:
    """A soup: its ticket, and the indices of the tickets that are in it, in the order they were added."""

    ticket: Ticket
    ingredients: tuple[int, ...]


@dataclass(frozen=True)
class Soup(Tensorwise):
    """The mean of several networks' weights.

    The plain soup takes all of them. The greedy soup visits them from the best validation score downwards and keeps
    each one whose addition does not lower the score of the mean, so that the soup is never worse on validation than
    its best ingredient.

    Attributes:
        greedy: keep only what helps; else take all. ``merge``, which has no validation, takes all.

    Paper: "Model soups: averaging weights of multiple fine-tuned models improves accuracy without increasing
    inference time", arXiv 2203.05482.
    """

    greedy: bool = True

    def mix(self, tensors: Sequence[torch.Tensor], base: torch.Tensor | None) -> torch.Tensor:
        """Return the mean."""
        return weighted(tensors, [1 / len(tensors)] * len(tensors))

    def cook(
        self,
        model: torch.nn.Module,
        tickets: Sequence[Ticket],
        validate: Validate,
        *,
        batches: Iterable[Any] | None = None,
        forward: Forward | None = None,
        sparsity: float | None = None,
    ) -> Cooked:
        """Make a soup, with its norm statistics measured and its validation score.

        Args:
            model: of the tickets' structure; it is lent to the work and comes back as it was.
            tickets: what to average; scores they carry are not read, each is validated here.
            validate: (model) -> score on validation data, higher is better. Never pass test data.
            batches: training data for ``refresh_norm``, read once per soup tried; needed where the model has BatchNorm.
            forward: how to call the model with one of the batches.
            sparsity: of the soup; that of the tickets if not given.

        Raises:
            LowdimError: the tickets do not fit together, differ in sparsity and none is given, or norm statistics
                cannot be measured without batches.
        """
        keep = kept_count(tickets, sparsity)

        def taste(indices: list[int]) -> Ticket:
            mixed = self.merge([tickets[i] for i in indices], sparsity=sparsity)
            return refreshed(model, mixed, validate, batches, forward)

        with borrowed(model):
            if not self.greedy:
                return Cooked(taste(list(range(len(tickets)))), tuple(range(len(tickets))))
            if min(ticket.masks.kept() for ticket in tickets) < keep:
                raise LowdimError("a ticket alone has fewer weights than the soup is to keep; raise sparsity")
            scores = [value(validated(model, ticket, validate)) for ticket in tickets]
            first, *others = sorted(range(len(tickets)), key=lambda i: -scores[i])
            # one ticket of the soup's own size needs neither prune nor new statistics
            alone = tickets[first].masks.kept() == keep
            soup = tickets[first].scored(scores[first]) if alone else taste([first])
            chosen = [first]
            for index in others:
                candidate = taste([*chosen, index])
                if value(candidate) >= value(soup):
                    soup, chosen = candidate, [*chosen, index]
            return Cooked(soup, tuple(chosen))

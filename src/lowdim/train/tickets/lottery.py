"""Lottery tickets: iterative magnitude pruning with rewinding."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from lowdim.core.errors import CheckpointError
from lowdim.core.lazy import torch
from lowdim.core.settings import Settings, count, within
from lowdim.core.topk import keep_top_across
from lowdim.train.initial.base import keep_counted, warn_of_empty
from lowdim.train.initial.magnitude import Scope

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class LotteryTickets(Settings):
    """Train, prune a share of the weights that are left by magnitude, put the rest back, and again.

    After round r, round(N * (1 - rate) ** r) of N weights are left, exactly. They start again from their initial
    values, or from those of an early step of the first training ("rewinding").

    Args:
        rate: share of the remaining weights that each round prunes.
        rounds: times to prune; the training before the first is dense. 19 rounds at 0.2 leave 1.44%.
        scope: "global" compares all layers' weights with each other; "layer" prunes the same share of each.

    Paper: "The Lottery Ticket Hypothesis: Finding Sparse, Trainable Neural Networks", arXiv 1803.03635; rewinding to an
    early step: "Linear Mode Connectivity and the Lottery Ticket Hypothesis", arXiv 1912.05671.

    Example:
        >>> [LotteryTickets(rate=0.2).kept(100, r) for r in range(5)]
        [100, 80, 64, 51, 41]
    """

    rate: float = within(0.2, above=0, below=1, why="the share pruned per round")
    rounds: int = count(19)
    scope: Scope = "global"

    def kept(self, size: int, done: int) -> int:
        """Return how many of ``size`` weights are left after ``done`` rounds of pruning, at least one."""
        return max(min(size, 1), round(size * (1.0 - self.rate) ** done))

    def start(
        self, model: nn.Module, include: Sequence[str] | None = None, exclude: Sequence[str] | None = None
    ) -> IMP:
        """Return the rounds for a network as it was initialised; see `IMP`."""
        return IMP(model, include=include, exclude=exclude, **self.to_dict())

    def prune(self, weights: Mapping[str, Tensor], masks: Mapping[str, Tensor], done: int) -> dict[str, Tensor]:
        """Return the masks after ``done`` rounds: the largest of the weights that the masks before kept.

        Raises:
            NumericalError: a weight is NaN.
        """
        scores = {name: weight.detach().abs().masked_fill(~masks[name], -1.0) for name, weight in weights.items()}
        sizes = {name: score.numel() for name, score in scores.items()}
        if self.scope == "global":
            return keep_top_across(scores, self.kept(sum(sizes.values()), done))
        return keep_counted(scores, {name: self.kept(size, done) for name, size in sizes.items()})


@dataclass(frozen=True, eq=False)
class LotteryTicket:
    """What a round trains: the masks, the values its weights start from, and the step these are of.

    Attributes:
        round: rounds of pruning before it; 0 is the dense training.
        masks: name -> bool tensor, True = kept; to be handed to ``SparseTraining(masks=...)``.
        state: the model's state at the rewinding point, before the masks are applied.
        step: the step that state is of, where the learning rate schedule should go on.
    """

    round: int
    masks: Mapping[str, Tensor]
    state: Mapping[str, Tensor]
    step: int

    @property
    def sparsity(self) -> float:
        """Share of zeros over all masks."""
        size = sum(mask.numel() for mask in self.masks.values())
        return 1.0 - sum(int(mask.sum()) for mask in self.masks.values()) / max(1, size)


class IMP:
    """Iterative magnitude pruning: go through it and train the model in each round.

    On entering a round the model holds the values of the rewinding point, zero where the mask is False; buffers are put
    back as well. When the body of the loop ends, the model's weights are taken as trained and pruned by magnitude among
    those that were left; whatever training wrote into the others is ignored. Make a new optimizer in each round.

    ``mark`` sets the rewinding point. Without it, that is the model as it was given.

    Args:
        model: the network, as it was initialised.
        include: globs of the weights to prune, see ``lowdim.models.structure.selection.select``.
        exclude: globs of weights that stay dense.
        settings: of `LotteryTickets`.

    Raises:
        RecipeError: a setting is impossible.
        NumericalError: a trained weight is NaN; the round can be trained again.

    Example:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> rounds = IMP(model, rate=0.5, rounds=2)
        >>> for ticket in rounds:
        ...     for step in range(ticket.step, 3):
        ...         rounds.mark(step) if step == 1 else None  # train here
        ...     print(ticket.round, ticket.step, int(ticket.masks["0.weight"].sum()))
        0 0 20
        1 1 10
        2 1 5
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        include: Sequence[str] | None = None,
        exclude: Sequence[str] | None = None,
        **settings: Any,
    ) -> None:
        from lowdim.models.structure.selection import select

        self.settings = LotteryTickets(**settings)
        self.round = 0
        self._model = model
        self._weights = select(model, include, exclude)
        self._masks = {name: torch.ones_like(w, dtype=torch.bool) for name, w in self._weights.items()}
        self._state, self._step = _copied(model), 0

    @property
    def masks(self) -> Mapping[str, Tensor]:
        """The masks of the current round."""
        return MappingProxyType(self._masks)

    def mark(self, step: int) -> None:
        """Make the model as it is now, at ``step``, the rewinding point; in later rounds nothing happens.

        Call it in every round when the step is reached, so that one training loop serves all rounds.
        """
        if self.round == 0:
            self._state, self._step = _copied(self._model), step

    def __iter__(self) -> Iterator[LotteryTicket]:
        """Yield a ticket per round, the dense one first: ``rounds`` + 1 trainings. Goes on at the current round."""
        while True:
            self._rewind()
            yield LotteryTicket(self.round, self.masks, MappingProxyType(self._state), self._step)
            if self.round >= self.settings.rounds:
                return
            self._masks = self.settings.prune(self._weights, self._masks, self.round + 1)
            warn_of_empty("lottery-tickets", self._masks)
            self.round += 1

    def _rewind(self) -> None:
        self._model.load_state_dict(self._state)
        with torch.no_grad():
            for name, weight in self._weights.items():
                weight.masked_fill_(~self._masks[name], 0.0)

    def state_dict(self) -> dict[str, Any]:
        """Return all that is needed to repeat the current round from its start."""
        return {
            "settings": self.settings.to_dict(),
            "round": self.round,
            "step": self._step,
            "masks": {name: mask.clone() for name, mask in self._masks.items()},
            "state": {name: value.clone() for name, value in self._state.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to the round that was saved; the loop over this object then starts with it.

        Raises:
            CheckpointError: the state is of other settings or of another model.
        """
        if state["settings"] != (settings := self.settings.to_dict()):
            raise CheckpointError(
                f"the state was saved with {state['settings']}; this is {settings}. Use the same settings"
            )
        mine = {name: tuple(weight.shape) for name, weight in self._weights.items()}
        theirs = {name: tuple(mask.shape) for name, mask in state["masks"].items()}
        if mine != theirs:
            other = sorted(set(mine.items()) ^ set(theirs.items()))
            raise CheckpointError(f"the state is of another model; the first difference is {other[0]}")
        self.round, self._step = int(state["round"]), int(state["step"])
        self._masks = {
            name: state["masks"][name].to(weight.device, copy=True) for name, weight in self._weights.items()
        }
        self._state = {name: value.clone() for name, value in state["state"].items()}


def _copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}

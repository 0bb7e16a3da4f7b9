"""The rounds of iterative magnitude pruning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from lowdim.core.errors import CheckpointError
from lowdim.core.topk import keep_top_across
from lowdim.models.walk.selection import select
from lowdim.train.initial.base import keep_counted, warn_of_empty
from lowdim.train.initial.lottery import LotteryTickets
from lowdim.train.initial.magnitude import Scope


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
    those that were left; whatever training wrote into the others does not count. Make a new optimizer in each round.

    ``mark`` sets the rewinding point. Without it that is the model as it came.

    Args:
        model: the network, as it was initialised.
        rate: see `LotteryTickets`.
        rounds: see `LotteryTickets`.
        scope: see `LotteryTickets`.
        include: globs of the weights to prune, see ``lowdim.models.walk.selection.select``.
        exclude: globs of weights that stay dense.

    Raises:
        RecipeError: a setting is impossible.
        NumericalError: a trained weight is NaN; the round can be trained again.

    Example:
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
        rate: float = 0.2,
        rounds: int = 19,
        scope: Scope = "global",
        include: Sequence[str] | None = None,
        exclude: Sequence[str] | None = None,
    ) -> None:
        self.settings = LotteryTickets(rate, rounds, scope)
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
            self._prune()
            self.round += 1

    def _rewind(self) -> None:
        self._model.load_state_dict(self._state)
        with torch.no_grad():
            for name, weight in self._weights.items():
                weight.masked_fill_(~self._masks[name], 0.0)

    def _prune(self) -> None:
        scores = {
            name: weight.detach().abs().masked_fill(~self._masks[name], -1.0)
            for name, weight in self._weights.items()
        }
        done, settings = self.round + 1, self.settings
        if settings.scope == "global":
            size = sum(score.numel() for score in scores.values())
            self._masks = keep_top_across(scores, settings.kept(size, done))
        else:
            counts = {name: settings.kept(score.numel(), done) for name, score in scores.items()}
            self._masks = keep_counted(scores, counts)
        warn_of_empty("lottery-tickets", self._masks)

    def state_dict(self) -> dict[str, Any]:
        """Return all that is needed to go on with the current round from its start."""
        return {
            "settings": asdict(self.settings),
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
        if state["settings"] != asdict(self.settings):
            raise CheckpointError(
                f"the state was saved with {state['settings']}; this is {asdict(self.settings)}. Use the same settings"
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

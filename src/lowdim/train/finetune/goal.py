"""Answers and preferences as what a model is trained for, without the logits of a whole batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lowdim.core.progress import Progress
from lowdim.models import ranks
from lowdim.models.walk.logits import linear_head, without_head
from lowdim.nn.blocks import evaluating
from lowdim.train.finetune.pairs import PairMicro, Pairs
from lowdim.train.objectives.divergence import Side, divergence
from lowdim.train.objectives.likelihood import token_likelihood
from lowdim.train.objectives.rows import Scratch
from lowdim.train.preference.base import Preference
from lowdim.train.pretrain.sequences import IGNORED, Micro


class _Counted:
    """The states of the tokens that count, and the layer that makes logits of them.

    The logits of a whole batch are never held where they are one linear layer of the last hidden states.

    Args:
        model: the model before anything was put around it.
    """

    def __init__(self, model: nn.Module) -> None:
        self._head, self._scratch = linear_head(model), Scratch()

    def _side(self, model: nn.Module, ids: Tensor, targets: Tensor) -> tuple[Side, Tensor]:
        """Return what makes the logits of the tokens that count, and where these are, bool of the shape of the ids."""
        counted = targets != IGNORED
        if self._head is None:
            return Side(model(input_ids=ids).logits[counted]), counted
        with without_head(self._head):
            states = model(input_ids=ids).logits
        return Side(states[counted], self._head.weight, self._head.bias), counted


class Answers(_Counted):
    """The cross entropy of the tokens of answers, or of all of a text, given those before."""

    unit, width = "tokens", 2

    def loss(self, model: nn.Module, micro: Micro, device: torch.device) -> Tensor:
        """Return its mean over the tokens that count."""
        targets = micro.targets.to(device)
        side, counted = self._side(model, micro.ids.to(device), targets)
        return divergence(side, None, targets[counted], kl=0.0, ce=1.0, scratch=self._scratch)

    def sums(self, model: nn.Module, micro: Micro, device: torch.device) -> Tensor:
        """Return its sum, and how many tokens that is."""
        targets = micro.targets.to(device)
        side, counted = self._side(model, micro.ids.to(device), targets)
        each = token_likelihood(side, targets[counted], scratch=self._scratch)
        return torch.stack([-each.double().sum(), counted.sum().double()])

    def verdict(self, sums: Sequence[float]) -> dict[str, float]:
        """Return the mean of all tokens."""
        return {"loss": sums[0] / sums[1]}


class Preferred(_Counted):
    """A loss of preferences, and how often the model prefers what people do.

    The verdict on pairs held out is their mean ``loss``; ``accuracy``, the share of the pairs without ties whose chosen
    answer gained more of its log-probability than the rejected one (half of a pair where neither did); and, where there
    are ties, ``accuracy_with_ties``, the share of all pairs that the objective decides as people do: win, loss or tie
    (see `Preference.decided`).

    Args:
        rule: the loss.
        model: the model before anything was put around it.
    """

    unit, width = "pairs", 6

    def __init__(self, rule: Preference, model: nn.Module) -> None:
        super().__init__(model)
        self.rule = rule

    def loss(self, model: nn.Module, micro: PairMicro, device: torch.device) -> Tensor:
        """Return the mean loss of the pairs."""
        return self.rule.losses(self._ratio(model, micro, device), micro.ties.to(device)).mean()

    def sums(self, model: nn.Module, micro: PairMicro, device: torch.device) -> Tensor:
        """Return the loss, and the pairs that have one; right decisions and pairs, without ties and with."""
        ratio, ties = self._ratio(model, micro, device), micro.ties.to(device)
        taught = ~ties if self.rule.drops_ties else torch.ones_like(ties)
        strict = ~ties
        found = (
            self.rule.losses(ratio, ties)[taught].sum(),
            taught.sum(),
            (ratio[strict] > 0).sum() + 0.5 * (ratio[strict] == 0).sum(),
            strict.sum(),
            (self.rule.decided(ratio) == strict.int()).sum(),
            ties.sum(),
        )
        return torch.stack([each.double() for each in found])

    def verdict(self, sums: Sequence[float]) -> dict[str, float]:
        """Return loss and accuracies."""
        lost, taught, right, strict, decided, ties = sums
        return {
            "loss": lost / taught,
            **({"accuracy": right / strict} if strict else {}),
            **({"accuracy_with_ties": decided / (strict + ties)} if ties else {}),
        }

    def likelihoods(self, model: nn.Module, micro: PairMicro, device: torch.device) -> Tensor:
        """Return the log-probabilities of the chosen and the rejected answers, fp32 ``[pairs, 2]``."""
        ids, targets = micro.ids.to(device), micro.targets.to(device)
        side, counted = self._side(model, ids, targets)
        each = token_likelihood(side, targets[counted], scratch=self._scratch)
        rows = counted.nonzero()[:, 0]
        return each.new_zeros(len(ids)).index_add(0, rows, each).view(2, -1).T

    def _ratio(self, model: nn.Module, micro: PairMicro, device: torch.device) -> Tensor:
        apart = self.likelihoods(model, micro, device) - micro.reference.to(device)
        return apart[:, 0] - apart[:, 1]

    @torch.no_grad()
    def refer(self, model: nn.Module, pairs: Pairs, batch: int, device: torch.device, progress: Progress) -> Tensor:
        """Return what the model says of all pairs before it is trained, fp32 ``[pairs, 2]``."""
        inner = ranks.unwrapped(model)
        order = sorted(range(len(pairs)), key=lambda row: (-pairs.tokens(row), row))
        found = torch.zeros(len(pairs), 2)
        with evaluating(inner), progress.stage("Reference", len(pairs), "pairs") as stage:
            for start in range(0, len(order), batch):
                rows = order[start : start + batch]
                found[rows] = self.likelihoods(inner, pairs.micro(rows), device).cpu()
                stage.advance(len(rows))
        return found

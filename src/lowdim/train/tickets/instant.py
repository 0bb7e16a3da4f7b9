"""Instant Soup: masks of many short trainings, merged, instead of one mask of a long one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Literal

from lowdim.core.lazy import torch
from lowdim.core.masks import Masks
from lowdim.core.settings import Settings, check_sparsity, count, within
from lowdim.merge.combine import intersection, iou, largest, pairwise_mean, union
from lowdim.models.ticket import borrowed

Train = Callable[[float, int], None]


@dataclass(frozen=True)
class Round:
    """One round: weights kept after it, and how alike the weak masks were (mean IoU over pairs, 1 for one mask)."""

    kept: int
    agreement: float


@dataclass(frozen=True, eq=False)
class Instant:
    """The masks, the rounds that made them, and how many weights the last, one-shot prune removed."""

    masks: Masks
    rounds: tuple[Round, ...]
    one_shot: int


@dataclass(frozen=True)
class InstantSoup(Settings):
    """Pruning in rounds in which K short trainings each propose a mask and the proposals are merged.

    A round: train the model for ``main`` epochs; from its weights and optimizer state train K copies, one after
    another, for ``weak`` epochs on their own data order; each proposes to prune the share ``step`` of the remaining
    weights, the smallest over all layers; what at least one proposal keeps ("union") or all keep ("intersection")
    stays. The copies' weights are thrown away. When the target is nearer than ``slack``, or after ``rounds`` rounds,
    the rest goes in one shot, to the exact count. Fine-tune the result as usual.

    K = 1 is iterative magnitude pruning with short cycles. The union of noisy proposals prunes less than ``step`` per
    round, so that the last prune may be a large one: ``Instant.one_shot`` says how large.

    Attributes:
        denoisers: K, copies per round.
        step: share of the remaining weights that each copy proposes to prune.
        weak: epochs of a copy's training.
        main: epochs of the model's own training in each round.
        slack: distance to the target sparsity at which the rounds end.
        rounds: at most so many rounds; the published runs take the number of fine-tuning epochs.
        merge: "union" of what is kept, or "intersection".

    Paper: "Instant Soup: Cheap Pruning Ensembles in A Single Pass Can Draw Lottery Tickets from Large Models",
    arXiv 2306.10460.
    """

    denoisers: int = count(5)
    step: float = within(0.1, above=0, below=1)
    weak: float = within(0.1, least=0)
    main: float = within(0.5, least=0)
    slack: float = within(0.05, least=0)
    rounds: int = count(10, least=0)
    merge: Literal["union", "intersection"] = "union"

    def prune(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        train: Train,
        sparsity: float,
        *,
        include: Sequence[str] | None = None,
        exclude: Sequence[str] | None = None,
        seed: int = 0,
    ) -> Instant:
        """Train and prune a model in place.

        Args:
            model: pre-trained, as a rule; it ends with the weights of its own training, pruned.
            optimizer: of the model. Masks are applied after each of its steps; copies begin with its state.
            train: (epochs, seed) -> None, trains the model with the optimizer for a share of epochs on the data order
                of the seed. It gets the same seed for every main training, another for each copy of a round.
            sparsity: share of zeros to reach over all pruned weights, exactly.
            include: globs of the weights to prune, see `lowdim.models.structure.selection.select`.
            exclude: globs of weights that stay dense.
            seed: of the main training; copy k gets seed + k + 1.

        Raises:
            RecipeError: sparsity is not from 0 to below 1, or a glob matches nothing.
        """
        from lowdim.models.structure.selection import select

        check_sparsity(sparsity)
        weights = select(model, include, exclude)
        masks = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}
        total = _count(masks)
        target = round((1 - sparsity) * total)
        rounds: list[Round] = []
        for index in range(self.rounds + 1):
            _train(weights, masks, optimizer, train, self.main, seed)
            kept = _count(masks)
            if index == self.rounds or kept - target < self.slack * total:
                break
            keep = max(target, round((1 - self.step) * kept))
            weak = self._weak_masks(model, weights, masks, optimizer, train, keep, seed)
            masks = union(weak) if self.merge == "union" else intersection(weak)
            if _count(masks) < target:
                masks = _filled(weights, masks, union(weak), target)
            rounds.append(Round(_count(masks), pairwise_mean(weak, iou, alone=1.0)))
            _zero(weights, masks)
        final = largest(weights, masks, target)
        _zero(weights, final)
        packed = Masks.from_dict({name: mask.cpu() for name, mask in final.items()})
        return Instant(packed, tuple(rounds), _count(masks) - target)

    def _weak_masks(
        self,
        model: torch.nn.Module,
        weights: Mapping[str, torch.Tensor],
        masks: Mapping[str, torch.Tensor],
        optimizer: torch.optim.Optimizer,
        train: Train,
        keep: int,
        seed: int,
    ) -> list[dict[str, torch.Tensor]]:
        """Return the proposals of the copies; the model and the optimizer come back as they were."""
        state = deepcopy(optimizer.state_dict())
        proposals = []
        for copy in range(self.denoisers):
            with borrowed(model):
                _train(weights, masks, optimizer, train, self.weak, seed + copy + 1)
                proposals.append(largest(weights, masks, keep))
            optimizer.load_state_dict(deepcopy(state))
        return proposals


def _train(
    weights: Mapping[str, torch.Tensor],
    masks: Mapping[str, torch.Tensor],
    optimizer: torch.optim.Optimizer,
    train: Train,
    epochs: float,
    seed: int,
) -> None:
    """Run the caller's training with masked weights at zero after every optimizer step."""
    handle = optimizer.register_step_post_hook(lambda *_: _zero(weights, masks))
    try:
        train(epochs, seed)
    finally:
        handle.remove()


def _zero(weights: Mapping[str, torch.Tensor], masks: Mapping[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, mask in masks.items():
            weights[name].masked_fill_(~mask, 0.0)


def _filled(
    weights: Mapping[str, torch.Tensor], held: Mapping[str, torch.Tensor], legal: Mapping[str, torch.Tensor], keep: int
) -> dict[str, torch.Tensor]:
    """Add the largest of the other legal weights to those held: an intersection may fall below the target."""
    first = {name: torch.where(mask, torch.inf, weights[name].detach()) for name, mask in held.items()}
    return largest(first, legal, keep)


def _count(masks: Mapping[str, torch.Tensor]) -> int:
    return sum(int(mask.sum()) for mask in masks.values())

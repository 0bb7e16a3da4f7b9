"""Instant Soup: masks of many short trainings, merged, instead of one mask of a long one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowdim.core.errors import LowdimError, RecipeError
from lowdim.core.masks import Masks
from lowdim.train.tickets.combine import intersection, iou, largest, union
from lowdim.train.tickets.snapshot import Ticket

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

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
class InstantSoup:
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

    denoisers: int = 5
    step: float = 0.1
    weak: float = 0.1
    main: float = 0.5
    slack: float = 0.05
    rounds: int = 10
    merge: str = "union"

    def __post_init__(self) -> None:
        if self.denoisers < 1 or self.rounds < 0:
            raise RecipeError(
                f"denoisers must be at least 1 and rounds at least 0; got {self.denoisers} and {self.rounds}"
            )
        if not 0 < self.step < 1:
            raise RecipeError(f"step must be between 0 and 1; got {self.step}")
        if self.weak < 0 or self.main < 0 or self.slack < 0:
            raise RecipeError(
                f"weak, main and slack must not be negative; got {self.weak}, {self.main} and {self.slack}"
            )
        if self.merge not in ("union", "intersection"):
            raise RecipeError(f"merge must be union or intersection; got {self.merge!r}")

    def prune(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        train: Train,
        names: Sequence[str],
        sparsity: float,
        *,
        seed: int = 0,
    ) -> Instant:
        """Train and prune a model in place.

        Args:
            model: pre-trained, as a rule; it ends with the weights of its own training, pruned.
            optimizer: of the model. Masks are applied after each of its steps; copies begin with its state.
            train: (epochs, seed) -> None, trains the model with the optimizer for a share of epochs on the data order
                of the seed. It gets the same seed for every main training, another for each copy of a round.
            names: parameters to prune, such as "layers.0.weight".
            sparsity: share of zeros to reach among them, exactly.
            seed: of the main training; copy k gets seed + k + 1.

        Raises:
            RecipeError: sparsity is outside [0, 1) or no names are given.
            LowdimError: a name is not one of the model's.
        """
        if not names or not 0 <= sparsity < 1:
            raise RecipeError(
                f"sparsity must be in [0, 1) and names not empty; got {sparsity}, {list(names)}"
            )
        masks = _full(model, names)
        total = sum(mask.numel() for mask in masks.values())
        target = round((1 - sparsity) * total)
        rounds: list[Round] = []
        for index in range(self.rounds + 1):
            _train(model, optimizer, train, masks, self.main, seed)
            kept = _count(masks)
            if index == self.rounds or kept - target < self.slack * total:
                break
            weak = self._weak_masks(
                model, optimizer, train, masks, max(target, round((1 - self.step) * kept)), seed
            )
            masks = union(weak) if self.merge == "union" else intersection(weak)
            if (
                _count(masks) < target
            ):  # an intersection may overshoot: the largest of all proposals fill it up
                masks = _fill(model, masks, union(weak), target)
            rounds.append(Round(_count(masks), _agreement(weak)))
            _packed(masks).apply_(model)
        final = _packed(largest(dict(model.named_parameters()), masks, target))
        final.apply_(model)
        return Instant(final, tuple(rounds), _count(masks) - target)

    def _weak_masks(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        train: Train,
        masks: Mapping[str, Tensor],
        keep: int,
        seed: int,
    ) -> list[dict[str, Tensor]]:
        """Return the proposals of the copies; the model and the optimizer come back as they were."""
        weights, state = Ticket.of(model, masks), deepcopy(optimizer.state_dict())
        proposals = []
        for copy in range(self.denoisers):
            _train(model, optimizer, train, masks, self.weak, seed + copy + 1)
            proposals.append(largest(dict(model.named_parameters()), masks, keep))
            weights.apply_(model)
            optimizer.load_state_dict(deepcopy(state))
        return proposals


def _full(model: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
    import torch

    parameters = dict(model.named_parameters())
    unknown = [name for name in names if name not in parameters]
    if unknown:
        raise LowdimError(f"the model has no parameters {unknown}; tied ones go by their first name")
    return {name: torch.ones_like(parameters[name], dtype=torch.bool) for name in names}


def _train(
    model: nn.Module,
    optimizer: Optimizer,
    train: Train,
    masks: Mapping[str, Tensor],
    epochs: float,
    seed: int,
) -> None:
    """Run the caller's training with masked weights at zero after every optimizer step."""
    import torch

    parameters = dict(model.named_parameters())

    def hold(*_: object) -> None:
        with torch.no_grad():
            for name, mask in masks.items():
                parameters[name].masked_fill_(~mask, 0.0)

    handle = optimizer.register_step_post_hook(hold)
    try:
        train(epochs, seed)
    finally:
        handle.remove()


def _fill(
    model: nn.Module, held: Mapping[str, Tensor], legal: Mapping[str, Tensor], keep: int
) -> dict[str, Tensor]:
    import torch

    weights = dict(model.named_parameters())
    boosted = {
        name: torch.where(mask, torch.full_like(weights[name], torch.inf), weights[name].detach())
        for name, mask in held.items()
    }
    return largest(boosted, legal, keep)


def _packed(masks: Mapping[str, Tensor]) -> Masks:
    return Masks.from_dict({name: mask.cpu() for name, mask in masks.items()})


def _count(masks: Mapping[str, Tensor]) -> int:
    return sum(int(mask.sum()) for mask in masks.values())


def _agreement(weak: Sequence[Mapping[str, Tensor]]) -> float:
    found = [iou(a, b) for i, a in enumerate(weak) for b in weak[i + 1 :]]
    return sum(found) / len(found) if found else 1.0

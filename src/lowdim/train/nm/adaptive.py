"""Masks that adapt: a rider that decays what is pruned and chooses the masks anew."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from lowdim.core import pattern as patterns
from lowdim.core.errors import CheckpointError, LowdimError, RecipeError
from lowdim.core.masks import Masks, as_mask
from lowdim.core.pattern import Pattern
from lowdim.core.registry import find
from lowdim.core.score import ColumnScore
from lowdim.core.settings import Range, check
from lowdim.train.nm.riders import MaskRider
from lowdim.train.nm.weight import MovingMask
from lowdim.train.ride import Ride, optimizer_of

if TYPE_CHECKING:
    from lowdim.train.nm.ast import AST


class AdaptiveMasks(MaskRider):
    """The masks of `AST`: a `Loop` computes with masked weights, and this moves the masks while all weights train.

    The weights must be dense where they are pruned: those of the model before it was pruned. Construct this after the
    optimizer and before the loop, which takes `projections` and has this among its riders. Each choice of masks appends
    to ``history`` the step, the decay, and the shares of weights that changed sides: ``flipped`` since the choice
    before, ``from_start`` since the first masks, both over all weights named here.

    Args:
        parameters: by name, the weights whose masks move; matrices, or stacks of them.
        masks: by the same names, which of them are kept at first; bool, whole on every rank.
        pattern: as in `lowdim.core.pattern.parse`; the masks must be of it. Unstructured without a group is compared in
            the score's own.
        settings: of the method.
        optimizer: that trains the weights.
        total_steps: of the whole run.
        column_scales: by name, for ``score`` "wanda": the root mean square of each input, fp32 [in]; see
            `lowdim.train.nm.scales.column_scales`.
        transposed: names of weights that are [in, out], as in GPT-2's Conv1D.

    Raises:
        RecipeError: a setting is out of range, does nothing, or lacks what it needs.
        PatternError: masks are not of the pattern.
        LowdimError: masks and weights do not belong together, or the optimizer lacks a weight.

    Example:
        >>> from lowdim.train.loop import Loop
        >>> from lowdim.train.nm.ast import AST
        >>> model = nn.Linear(4, 1, bias=False)
        >>> _ = model.weight.data.copy_(torch.tensor([[3.0, 2.0, 1.9, 0.1]]))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        >>> masks = {"weight": torch.tensor([[True, True, False, False]])}
        >>> moving = AdaptiveMasks({"weight": model.weight}, masks, "2:4", AST(every=2), optimizer, total_steps=5)
        >>> loop = Loop(
        ...     model,
        ...     optimizer,
        ...     loss=lambda model, x: model(x).mean(),
        ...     projected=moving.projections(),
        ...     riders=[moving],
        ... )
        >>> _ = loop.run([torch.tensor([[0.0, 0.1, -0.1, 0.0]])] * 5)
        >>> moving.masks["weight"].tolist(), [update["flipped"] for update in moving.history]
        ([[True, False, True, False]], [0.5, 0.0])
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        masks: Mapping[str, Tensor],
        pattern: str | Pattern,
        settings: AST,
        optimizer: Optimizer,
        total_steps: int,
        *,
        column_scales: Mapping[str, Tensor] | None = None,
        transposed: Collection[str] = (),
    ) -> None:
        check("total_steps", total_steps, Range(least=1, whole=True))
        settings.check(total_steps)
        self.settings, self.total_steps = settings, total_steps
        score = find("score", settings.score).load()()
        self.pattern = patterns.parse(pattern).resolve(score.default_group)
        self._optimizer = optimizer_of(optimizer)
        _check_names(parameters, masks, self._optimizer)
        scales = _scales(parameters, column_scales, score)
        self._weights = [
            MovingMask(
                name,
                parameter,
                as_mask(name, masks[name]),
                self.pattern,
                score,
                scales.get(name),
                name in transposed,
            )
            for name, parameter in parameters.items()
        ]
        self._sharded = any(isinstance(parameter, DTensor) for parameter in parameters.values())
        self._shown: set[str] = set()
        self.history: list[dict[str, Any]] = []
        self._ride = Ride.board(optimizer, self)

    # ---------------------------------------------------------------- what others read

    @property
    def masks(self) -> Masks:
        """The masks as they are now, by name; gathered from all ranks if they are sharded, so that all must ask."""
        return Masks.from_dict({weight.name: weight.whole(weight.mask) for weight in self._weights})

    def weights(self) -> list[tuple[str, Tensor]]:
        """Return those whose masks move."""
        return [(weight.name, weight.parameter) for weight in self._weights]

    def projections(self) -> dict[nn.Parameter, Callable[[Tensor], Tensor]]:
        """Return what a `Loop` computes with, for its ``projected``."""
        return {weight.parameter: self._projection(weight) for weight in self._weights}

    def _projection(self, weight: MovingMask) -> Callable[[Tensor], Tensor]:
        def masked(wide: Tensor) -> Tensor:
            self._shown.add(weight.name)
            return weight.projected(wide)

        return masked

    # ---------------------------------------------------------------- around the optimizer's step

    def gradients(self, step: int) -> bool:
        """Add the decay of what is pruned to the gradients.

        Raises:
            LowdimError: no loop computes with the masked weights.
        """
        if len(self._shown) < len(self._weights):
            name = next(weight.name for weight in self._weights if weight.name not in self._shown)
            raise LowdimError(
                f"nothing computes with the masked {name}: give a Loop projected=masks.projections() and "
                "riders=[masks] before the first step"
            )
        if decay := self.settings.decay_at(step, self.total_steps):
            climbed = {p for group in self._optimizer.param_groups if group.get("maximize") for p in group["params"]}
            for weight in self._weights:
                weight.add_decay(-decay if weight.parameter in climbed else decay)
        return False

    def stepped(self, step: int) -> None:
        """Choose the masks anew, where it is time; not after the last step, for nothing would be trained with them."""
        if step % self.settings.every or step == self.total_steps:
            return
        for weight in self._weights:
            weight.redraw()
        self._note(step)

    def _note(self, step: int) -> None:
        home = self._weights[0].mask.device
        moved = torch.stack([weight.moved().to(home) for weight in self._weights])
        if self._sharded:  # what is not sharded is added up too, its size as well
            dist.all_reduce(moved)
        sizes = [weight.parameter.numel() for weight in self._weights]
        flipped, since = (
            sum(int(row[which]) / int(row[2]) * size for row, size in zip(moved.cpu(), sizes, strict=True)) / sum(sizes)
            for which in (0, 1)
        )
        decay = self.settings.decay_at(step, self.total_steps)
        self.history.append({"step": step, "decay": decay, "flipped": flipped, "from_start": since})

    def remove(self) -> None:
        """Get off; masks stay as they are."""
        self._ride.leave(self)

    # ---------------------------------------------------------------- what is kept

    def state_dict(self) -> dict[str, Any]:
        """Return what resuming needs beside the weights and the optimizer's state; every rank must call it."""
        first = Masks.from_dict({weight.name: weight.whole(weight.first) for weight in self._weights})
        return {
            "recipe": self._recipe(),
            "step": self.step,
            "masks": self.masks.state_dict(),
            "first": first.state_dict(),
            "history": [dict(update) for update in self.history],
        }

    def _recipe(self) -> dict[str, Any]:
        return {
            "settings": self.settings.to_dict(),
            "pattern": repr(self.pattern),
            "total_steps": self.total_steps,
            "layers": {weight.name: list(weight.parameter.shape) for weight in self._weights},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a ``state_dict`` was taken, on any number of ranks.

        Raises:
            CheckpointError: the state is of another run; nothing has been changed then.
        """
        if not {"recipe", "masks", "first"} <= state.keys():
            raise CheckpointError(f"this state was not saved by AdaptiveMasks; it holds {sorted(state)[:5]}")
        for key, value in self._recipe().items():
            if state["recipe"].get(key) != value:
                raise CheckpointError(
                    f"this state was saved with another {key}: {state['recipe'].get(key)!r}, now {value!r}. Construct "
                    "everything as it was in the run that is resumed"
                )
        masks, first = Masks(), Masks()
        masks.load_state_dict(state["masks"])
        first.load_state_dict(state["first"])
        for weight in self._weights:
            weight.load(masks[weight.name], first[weight.name])
        self.step, self.history = state["step"], [dict(update) for update in state["history"]]


def _check_names(parameters: Mapping[str, nn.Parameter], masks: Mapping[str, Tensor], optimizer: Optimizer) -> None:
    """Refuse weights and masks that do not belong together, and weights that nobody trains."""
    if not parameters:
        raise RecipeError("there is no weight whose mask could move; give at least one")
    if odd := sorted(parameters.keys() ^ masks.keys()):
        lacks = "mask" if odd[0] in parameters else "weight"
        raise LowdimError(f"{odd[0]} has no {lacks}: parameters and masks must have the same names")
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for name, parameter in parameters.items():
        if id(parameter) not in trained or not parameter.requires_grad:
            raise LowdimError(f"{name} is not trained: the optimizer must hold it, and it must require a gradient")


def _scales(
    parameters: Mapping[str, nn.Parameter], scales: Mapping[str, Tensor] | None, score: ColumnScore
) -> Mapping[str, Tensor]:
    """Return the column scales, which must be there where the score looks at inputs, and only there."""
    if not score.needs:
        if scales:
            raise RecipeError(f"{type(score).__name__} looks at no inputs; leave column_scales out, or choose wanda")
        return {}
    if missing := [name for name in parameters if name not in (scales or {})]:
        raise RecipeError(
            f"{type(score).__name__} needs the size of each layer's inputs: column_scales lacks {missing[0]}"
        )
    assert scales is not None
    return scales

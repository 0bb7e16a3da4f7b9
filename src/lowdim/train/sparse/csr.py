"""A truly sparse weight as the methods of sparse training see it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lowdim.core.errors import LowdimError
from lowdim.core.pattern.units import Entries
from lowdim.core.topk import keep_top
from lowdim.core.transition import draw, member
from lowdim.nn.csr.index import Index
from lowdim.nn.csr.linear import CSRLinear
from lowdim.train.sparse.state import begin, mirrors, per_weight

_AT_ONCE = 1 << 16  # positions whose products with a batch are held at a time


class CSRLayer:
    """The truly sparse executor of a `lowdim.train.sparse.layer.SparseLayer`: what is off does not exist.

    A move resizes the module's ``values`` and what the optimizer holds of them, all in the same way, so that
    kept weights keep their value and their state.

    Args:
        name: of the dense weight, such as "layers.0.weight": what randomness depends on.
        module: where the weight lives.
        optimizer: that trains ``module.values``.
    """

    def __init__(self, name: str, module: CSRLinear, optimizer: Optimizer) -> None:
        self.name, self.module, self.parameter = name, module, module.values
        self.shape: tuple[int, ...] = (module.out_features, module.in_features)
        self.size = module.out_features * module.in_features
        self.units = Entries(self.shape, self.size)
        self._optimizer = optimizer
        self._gradient: Tensor | None = None
        self._first: Tensor | None = module.col

    @property
    def kept(self) -> int:
        """Active weights."""
        return self.module.kept

    def positions(self) -> Tensor:
        """Return the flat positions of the active weights, int64 [kept], ascending."""
        return self.module.positions()

    def snapshot(self) -> Index:
        """Return where the active weights are; a move makes another index."""
        return self.module.index

    def changed(self, before: Index) -> tuple[int, int]:
        """Return how many weights were dropped and grown since a ``snapshot``."""
        old = before.positions()
        dropped = int((~member(old, self.positions())).sum())
        return dropped, self.kept - len(old) + dropped

    def mask(self) -> Tensor:
        """Return which weights are active, bool [shape]; for weights whose mask fits into memory."""
        mask = torch.zeros(self.size, dtype=torch.bool)
        mask[self.positions()] = True
        return mask.view(self.shape)

    def values(self) -> Tensor:
        """Return the active weights, fp32 [kept]."""
        return self.parameter.detach().clone()

    def gradients(self) -> Tensor:
        """Return the gradient of the active weights, fp32 [kept].

        Raises:
            LowdimError: there is none.
        """
        gradient = self.parameter.grad if self._gradient is None else self._gradient
        if gradient is None:
            raise LowdimError(
                f"{self.name} has no gradient at a mask update; call backward before the optimizer's step, or leave "
                "the layer out if it is not always used"
            )
        return gradient.detach()

    def top_gradient(self, count: int, excluded: Tensor) -> Tensor:
        """Return where the dense gradient is largest, int64 [count], ascending, ties by the lowest position.

        It is computed in tiles from the step's inputs and output gradients, which takes ``watch(True)`` before the
        step.

        Args:
            count: how many.
            excluded: int64, ascending, positions that are out.

        Raises:
            LowdimError: nothing was watched.
            NumericalError: the gradient holds NaN.
        """
        if count == 0:
            return torch.empty(0, dtype=torch.int64)
        return self.module.index.top_gradient(*self._factors(), excluded, count)

    def gradients_at(self, positions: Tensor) -> Tensor:
        """Return the |dense gradient| at any positions, int64 [n], from what was watched; fp32 [n]."""
        x, g = self._factors()
        rows, cols = positions // self.shape[1], positions % self.shape[1]
        parts = zip(rows.split(_AT_ONCE), cols.split(_AT_ONCE), strict=True)
        return torch.cat([(g[:, r] * x[:, c]).sum(0).abs() for r, c in parts] or [torch.empty(0)])

    def _factors(self) -> tuple[Tensor, Tensor]:
        """Return what the dense gradient is the product of: of no sample where a layer of zero gradient was not called.

        Raises:
            LowdimError: nothing was watched.
        """
        gradient = self.gradients()
        if self.module.passed_over and not bool(gradient.any()):
            return gradient.new_empty(0, self.shape[1]), gradient.new_empty(0, self.shape[0])
        return self.module.factors()

    def top(self, scores: Tensor, count: int, excluded: Tensor) -> Tensor:
        """Return the positions with the highest scores; see `lowdim.train.sparse.layer.SparseLayer`."""
        scores[excluded] = -1.0
        return keep_top(scores, count).nonzero().flatten()

    def draw(self, count: int, excluded: Tensor, generator: Generator) -> Tensor:
        """Return positions drawn at random, int64 [count], ascending, none of them in ``excluded``."""
        return draw(count, self.size, excluded, generator)

    def move(self, keep: Tensor, grown: Tensor, values: Tensor | None = None) -> None:
        """Drop and grow; see `lowdim.train.sparse.layer.SparseLayer`."""
        index, source = self.module.index.move(keep, grown)
        if values is not None:  # where `grown` lie among the new positions, whose sources are not in use then
            fresh = torch.searchsorted(index.positions(), grown)
            source[fresh] = -1
        state = self._optimizer.state.get(self.parameter, {})
        moved = {
            key: _pick(tensor, source, begin(self._optimizer, self.parameter, key))
            for key, tensor in per_weight(self._optimizer, self.parameter, self.name).items()
        }
        gradient = None if self.parameter.grad is None else _pick(self.parameter.grad, source)
        new = _pick(self.parameter.detach(), source)
        if values is not None:
            for tensor in (new, *(t for key, t in moved.items() if mirrors(self._optimizer, key))):
                tensor[fresh] = values.to(tensor)
        self.module.set_index(index, new)
        self.parameter.grad = gradient
        state.update(moved)

    # ---------------------------------------------------------------- around an optimizer step

    def watch(self, on: bool) -> None:
        """Start or stop keeping what ``top_gradient`` needs; call it before the forward of the step in question."""
        self.module.watch(on)

    def listen(self, coming: Callable[[], bool]) -> list[RemovableHandle]:
        """Do nothing: there is no gradient of what is off."""
        return []

    def clear_gradient(self) -> None:
        """Do nothing: there is no gradient of what is off."""

    def clear_weight(self) -> None:
        """Do nothing: what is off does not exist."""

    def clear_state(self) -> None:
        """Nothing to clear: the optimizer remembers kept weights alone."""

    @property
    def touched(self) -> bool:
        """Nobody else can write what is off."""
        return False

    @property
    def waits(self) -> bool:
        """Whether the positions are those that the layer was made with, before the first step."""
        return self._first is self.module.col

    def written(self) -> Tensor:
        """Return the values."""
        return self.parameter.detach()

    def astray(self, state: Tensor | None = None) -> int:
        """Count the values other than zero at positions that a ``state`` does not have."""
        if state is None:
            return 0
        return int((self.written()[~member(self.positions(), state.cpu())] != 0).sum())

    def still(self, looks: bool, prunes: bool = False) -> bool:
        """Tell whether there is no gradient to move by; see `lowdim.train.sparse.layer.Held`."""
        if self.parameter.grad is None or not self.parameter.requires_grad:
            return True
        return looks and not prunes and not bool(self._factors()[1].any())

    def hold_gradient(self) -> None:
        """Keep the gradient until ``release``, whatever happens to the parameter's own."""
        if self.parameter.grad is not None:
            self._gradient = self.parameter.grad.detach().clone()

    def release(self) -> None:
        """Forget the gradient, and the factors of the dense one."""
        self._gradient = self._first = None
        self.module.watch(False)

    def finite(self) -> bool:
        """Tell whether the gradient, and the factors of the dense one, hold neither NaN nor Inf."""
        gradient = self.parameter.grad
        return (gradient is None or bool(gradient.isfinite().all())) and self.module.finite()

    def check(self) -> None:
        """Refuse to go on with a parameter that the model no longer uses.

        Raises:
            LowdimError: see above.
        """
        if self.module.values is not self.parameter:
            raise LowdimError(
                f"{self.name}: the values were replaced by another tensor after SparseTraining was made. Replace "
                "parameters first, then make the optimizer and SparseTraining"
            )

    def state(self) -> Tensor:
        """Return the positions, int64 [kept]."""
        return self.positions()

    def give_back(self) -> None:
        """Nothing to give back: nothing was zeroed."""

    def load(self, state: Tensor, proven: bool = True) -> None:
        """Hold the positions of a ``state``; weights that were there already stay, the others are 0.

        The values come with the model's own state, before or after; the optimizer's state is its own.
        """
        index = Index.of(state.cpu(), (self.module.out_features, self.module.in_features))
        self.module.set_index(index, self.module.weight_at(state.cpu()))


def _pick(old: Tensor, source: Tensor, new: float = 0.0) -> Tensor:
    """Return ``old[source]``, ``new`` where the source is -1."""
    if not len(old):
        return old.new_full((len(source),), new)
    return old.index_select(0, source.clamp(min=0)).masked_fill_(source < 0, new)

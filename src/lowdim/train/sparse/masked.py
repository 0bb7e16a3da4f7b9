"""A sparse weight held as a dense one with a mask: any layer, any device, any shape."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lowdim.core.errors import LowdimError
from lowdim.core.masks import zero_
from lowdim.core.packing.bits import pack_bits, unpack_bits
from lowdim.core.pattern.units import Units
from lowdim.core.topk import keep_top, keep_top_rows
from lowdim.core.transition import draw
from lowdim.models.structure.selection import Weight
from lowdim.train.sparse.distributed import full, local, part
from lowdim.train.sparse.parts import Part, whole_of
from lowdim.train.sparse.state import begin, forget, mirrors, per_weight, remember


class MaskedLayer:
    """The masked executor of a `SparseLayer`: it changes what is trained, not how fast it runs.

    Weights that are off are exact zeros after every optimizer step, their gradient is cleared before it, and what the
    optimizer remembers of a weight is cleared when it goes off or on, so that nothing leaks from one life of a
    weight to the next.

    Args:
        weight: where the weight lives.
        units: what stands or falls together.
        quota: units that each group keeps, int64 [groups], or None.
        kept: the units active at first, bool [size].
        optimizer: that trains it.
    """

    def __init__(self, weight: Weight, units: Units, quota: Tensor | None, kept: Tensor, optimizer: Optimizer) -> None:
        self.name, self.shape, self._parameter = weight.name, units.shape, weight.parameter
        self.size, self.units, self._quota = units.size, units, quota
        self.module, self._attribute, self._optimizer = weight.module, weight.attribute, optimizer
        self._dense_gradient: Tensor | None = None
        self._cleared = False
        self._given: Tensor | None = local(self.parameter).detach().clone()
        self._forgotten: list[tuple[Tensor, Tensor, Tensor]] = []
        self.set(kept)

    @property
    def parameter(self) -> nn.Parameter:
        """What the optimizer trains."""
        return self._parameter.here() if isinstance(self._parameter, Part) else self._parameter

    @property
    def kept(self) -> int:
        """Active units."""
        return self._kept

    def set(self, kept: Tensor) -> None:
        """Take another mask, bool [size] on any device; weights that are off become zero, and so does their memory."""
        self._take(kept)
        self.clear_weight()
        self.clear_state()

    def _take(self, kept: Tensor) -> None:
        self._on = kept.to(local(self.parameter).device)
        self._kept = int(self._on.sum())
        self._off = part(~self.mask(), self.parameter)

    def mask(self) -> Tensor:
        """Return which weights are active, bool [shape]."""
        return self.units.spread(self._on)

    def snapshot(self) -> Tensor:
        """Return the active units, bool [size]; a move makes another tensor."""
        return self._on

    def changed(self, before: Tensor) -> tuple[int, int]:
        """Return how many units were dropped and grown since a ``snapshot``."""
        dropped = int((before & ~self._on).sum())
        return dropped, self._kept - int(before.sum()) + dropped

    def positions(self) -> Tensor:
        """Return the active units, int64 [kept], ascending."""
        return self._on.nonzero().flatten()

    def values(self) -> Tensor:
        """Return the active weights, or the norms of blocks, fp32 [kept]."""
        return self._active(self.parameter.detach())

    def gradients(self) -> Tensor:
        """Return the gradient of the active weights, or its norms, fp32 [kept]."""
        return self._active(self._gradient(dense=False))

    def _active(self, tensor: Tensor) -> Tensor:
        return self.units.values(full(tensor))[self._on].float()

    def _gradient(self, dense: bool = True) -> Tensor:
        gradient = self.parameter.grad if self._dense_gradient is None else self._dense_gradient
        if gradient is None:
            raise LowdimError(
                f"{self.name} has no gradient at a mask update; call backward before the optimizer's step, or leave "
                "the layer out if it is not always used"
            )
        if dense and self._cleared and self._dense_gradient is None:
            raise LowdimError(
                f"the gradient of what is off in {self.name} is gone; a method that looks at it has wants_gradient True"
            )
        return gradient.detach()

    def top_gradient(self, count: int, excluded: Tensor) -> Tensor:
        """Return the units with the largest |gradient|; see `SparseLayer`."""
        return self.top(self.units.values(full(self._gradient())).abs(), count, excluded)

    def gradients_at(self, positions: Tensor) -> Tensor:
        """Return the |gradient| of any units; see `SparseLayer`."""
        return self.units.values(full(self._gradient()))[positions].float().abs()

    def top(self, scores: Tensor, count: int, excluded: Tensor) -> Tensor:
        """Return the units with the highest scores, int64, ascending.

        Args:
            scores: [size], none negative; overwritten where excluded.
            count: how many; a group's own number where there are groups.
            excluded: int64, units that are out.
        """
        scores[excluded] = -1.0
        if self._quota is None:
            return keep_top(scores, count).nonzero().flatten()
        missing = self._missing(excluded)
        return keep_top_rows(scores.reshape(self.units.groups, -1), missing).flatten().nonzero().flatten()

    def _missing(self, staying: Tensor) -> Tensor:
        assert self._quota is not None
        width = self.size // self.units.groups
        return self._quota - torch.bincount(staying.cpu() // width, minlength=self.units.groups)

    def draw(self, count: int, excluded: Tensor, generator: Generator) -> Tensor:
        """Return units drawn at random; see `SparseLayer`."""
        if self._quota is None:
            return draw(count, self.size, excluded.cpu(), generator).to(excluded.device)
        return self.top(torch.rand(self.size, generator=generator).to(self._on.device), count, excluded)

    def move(self, keep: Tensor, grown: Tensor, values: Tensor | None = None) -> None:
        """Drop and grow; see `SparseLayer`."""
        before = self._on
        self._on = before.clone()
        self._on[self.positions()[~keep]] = False
        self._on[grown] = True
        restart = before ^ self._on
        if values is not None:
            restart[grown] = True
        self._kept = int(self._on.sum())
        self._off = part(~self.mask(), self.parameter)
        fresh = part(self.units.spread(restart), self.parameter)
        with torch.no_grad():
            local(self.parameter).masked_fill_(fresh, 0.0)
            for key, state in per_weight(self._optimizer, self.parameter, self.name).items():
                local(state).masked_fill_(fresh.to(state.device), begin(self._optimizer, self.parameter, key))
                if values is not None and mirrors(self._optimizer, key):
                    self._write(local(state), grown, values)
            if values is not None:
                self._write(local(self.parameter), grown, values)

    def _write(self, weight: Tensor, grown: Tensor, values: Tensor) -> None:
        marked, placed = torch.zeros_like(self._on), torch.zeros(self.size, device=self._on.device)
        marked[grown], placed[grown] = True, values.to(placed)
        where, new = (part(self.units.spread(x), self.parameter) for x in (marked, placed))
        weight.copy_(torch.where(where, new.to(weight.dtype), weight))

    # ---------------------------------------------------------------- around an optimizer step

    def clear_gradient(self) -> None:
        """Zero the gradient of what is off."""
        self._cleared = True
        if self.parameter.grad is not None:
            zero_(local(self.parameter.grad), self._off)

    def clear_weight(self) -> None:
        """Zero what is off."""
        with torch.no_grad():
            zero_(local(self.parameter), self._off)
        self._version = local(self.parameter)._version

    def clear_state(self) -> None:
        """Let the optimizer forget what is off; ``load`` brings back what it knew, until the next step."""
        self._forgotten = forget(self._optimizer, self.parameter, self._off)

    @property
    def touched(self) -> bool:
        """Whether somebody else has written the weights since they were zeroed last."""
        return local(self.parameter)._version != self._version

    @property
    def waits(self) -> bool:
        """Whether these are dense weights that nobody has written yet, in whose place a run's own may still be read."""
        zeros = int((self.written() == 0).sum())
        return self._given is not None and not self.touched and 2 * zeros <= int(self._off.sum())

    def written(self) -> Tensor:
        """Return this rank's weights as somebody else wrote them last, before the first mask zeroed any."""
        weight = local(self.parameter).detach()
        return weight if self._given is None or self.touched else self._given

    def astray(self, state: Tensor | None = None) -> int:
        """Count this rank's weights that are off and not zero: as they are, or as written and by a ``state``."""
        if state is None:
            off, weight = self._off, local(self.parameter).detach()
        else:
            off, weight = part(~self.units.spread(self._read(state)), self.parameter), self.written()
        return int(((weight != 0) & off).sum())

    def still(self, looks: bool, prunes: bool = False) -> bool:
        """Tell whether there is no gradient to move by; see `Held`."""
        gradient = self.parameter.grad
        if gradient is None or not self.parameter.requires_grad:
            return True
        stacked = self.parameter is not whole_of(self.parameter)
        return looks and (stacked or not prunes) and not bool(full(gradient).any())

    def hold_gradient(self) -> None:
        """Keep the dense gradient until ``release``, whatever happens to the parameter's own."""
        if self.parameter.grad is not None:
            self._dense_gradient = self.parameter.grad.detach().clone()

    def release(self) -> None:
        """Forget the dense gradient, and the weights from before the first step."""
        self._dense_gradient = self._given = None
        self._cleared, self._forgotten = False, []

    def finite(self) -> bool:
        """Tell whether this rank's gradient holds neither NaN nor Inf."""
        gradient = self.parameter.grad
        return gradient is None or bool(local(gradient).isfinite().all())

    def check(self) -> None:
        """Refuse to go on with a parameter that the model no longer uses.

        Raises:
            LowdimError: see above.
        """
        if self.module._parameters.get(self._attribute) is not whole_of(self.parameter):
            raise LowdimError(
                f"{self.name} was replaced by another tensor after SparseTraining was made, so its mask would act on "
                "nothing. Replace parameters (assign=True, fully_shard, new layers) first, then make the optimizer and "
                "SparseTraining"
            )

    def watch(self, on: bool) -> None:
        """Do nothing: the dense gradient is there anyway."""

    def listen(self, coming: Callable[[], bool]) -> list[RemovableHandle]:
        """Clear the gradient of what is off as soon as it is there, unless masks move at the coming step."""

        def clear(_: Tensor) -> None:
            if self.parameter.grad is None:  # an optimizer has taken its step on the way back already
                self.clear_weight()
            elif not coming():
                self.clear_gradient()

        return [self.parameter.register_post_accumulate_grad_hook(clear)]

    def state(self) -> Tensor:
        """Return the mask as bits, int64 [1, words]."""
        return pack_bits(self._on[None])

    def _read(self, state: Tensor) -> Tensor:
        return unpack_bits(state.cpu(), self.size)[0].clone().to(self._on.device)

    def give_back(self) -> None:
        """Put back what the first mask zeroed, of weights that nobody has written since, and of their memory."""
        with torch.no_grad():
            local(self.parameter).copy_(self.written())
        remember(self._forgotten)
        self._given, self._forgotten = None, []

    def load(self, state: Tensor, proven: bool = True) -> None:
        """Take the mask of a ``state``; with ``proven`` False, leave the weights alone until ``set`` or a step.

        Weights, and an optimizer's memory of them, that were read from a checkpoint before this object was made, and
        that its first mask zeroed, come back.
        """
        self.give_back()
        self._take(self._read(state))
        if proven:
            self.set(self._on)

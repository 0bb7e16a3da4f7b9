"""NeuroFS's evolution: input neurons are removed, exchanged and rewired while a sparse network trains."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lowdim.core.errors import RecipeError
from lowdim.core.lazy import torch
from lowdim.core.settings import count, share
from lowdim.core.topk import keep_top
from lowdim.core.transition import drop_by_sign, whole
from lowdim.train.sparse.method import Method
from lowdim.train.sparse.moment import Moment, Order

if TYPE_CHECKING:
    from torch import Tensor

    from lowdim.train.sparse.layer import SparseLayer

_WARMUP = 2  # epochs in which the input layer is rewired as the hidden ones are


@dataclass(frozen=True)
class NeuronEvolution(Method):
    """The input layer loses its weakest neurons until a few more than wanted are left, and then exchanges them.

    After an epoch every layer drops the weights nearest to zero, a share of either sign, and grows as many where the
    dense gradient is largest, with value 0. From the third epoch on, the first layer goes by neurons, whose strength
    is the sum of their |w|: ceil((D - removed) / (e_rm - e)) are removed, D = (1 - ``zeta_in``) d - ``select``, and
    removed * ``zeta_in`` * (1 - e / E) more are exchanged. The weakest go, except those that came in with the last
    update, and as many come in by their largest single gradient. Then connections of active neurons grow by
    |gradient| until the layer has its number again. At the end the ``select`` strongest inputs are the features.

    An update takes the place of a step; give it the gradient of the whole training set, as `lowdim.train.NeuroFS` does.

    Paper: "Supervised Feature Selection with Neuron Evolution in Sparse Neural Networks", TMLR 2023, arXiv 2303.07200.

    Args:
        select: K, features wanted in the end.
        every: optimizer steps of an epoch, the one that the update replaces included.
        zeta_in: share of the first layer's weights that moves, and the rate of exchange of its neurons.
        zeta_hid: share of the other layers' weights that moves.
        remove_until: share of the epochs after which no more neurons are removed.

    Example:
        >>> NeuronEvolution(select=50).removals(784)
        577
    """

    needs_total: ClassVar[bool] = True
    wants_gradient: ClassVar[bool] = True
    order: ClassVar[Order] = "replace_step"

    select: int = count(50)
    every: int = count(100)
    zeta_in: float = share(0.2)
    zeta_hid: float = share(0.3)
    remove_until: float = share(0.65)

    def removals(self, inputs: int) -> int:
        """Return D, how many of so many input neurons are removed in all."""
        return max(0, whole((1 - self.zeta_in) * inputs - self.select))

    def due(self, step: int, total: int | None) -> bool:
        """Tell whether an epoch ends, other than the last."""
        return step % self.every == 0 and (total is None or step < total)

    def check(self, layers: Sequence[SparseLayer]) -> None:
        """Refuse a first layer whose columns are not single input neurons."""
        first = layers[0]
        if len(first.shape) != 2 or first.size != math.prod(first.shape):
            raise RecipeError(
                f"{first.name}: neuron evolution needs a linear first layer and pattern='unstructured'; got the shape "
                f"{first.shape} in {first.size} units"
            )

    def update(self, moment: Moment) -> None:
        """Evolve the input layer, then the others."""
        first, *others = moment.layers
        epoch = moment.step // self.every - 1
        if epoch < _WARMUP:
            _rewire(first, self.zeta_hid)
        else:
            self._inputs(moment, first, epoch)
        for layer in others:
            _rewire(layer, self.zeta_hid)

    def shake(self, moment: Moment, fraction: float) -> None:
        """Drop ``fraction`` of the weights of every layer and grow as many by gradient; neurons stay."""
        for layer in moment.layers:
            _rewire(layer, fraction)

    # ---------------------------------------------------------------- the input layer

    def _inputs(self, moment: Moment, layer: SparseLayer, epoch: int) -> None:
        inputs, memory = layer.shape[1], moment.memory
        if "active" not in memory:
            memory |= {"active": torch.ones(inputs, dtype=torch.bool), "age": torch.full((inputs,), _WARMUP)}
            memory["removed"] = 0
        assert moment.total is not None
        active: Tensor = memory["active"]
        strong = strength(layer).cpu()
        memory["removed"], exchanged, kept = self.choose(
            strong, active, memory["age"], memory["removed"], epoch, moment.total // self.every
        )
        new = _strongest_gradients(layer, ~active, exchanged)
        memory["age"] = torch.where(kept, memory["age"] + 1, 0)
        memory["active"] = kept | new
        self._connect(layer, kept, kept | new, moment.targets[layer.name])

    def choose(
        self, strong: Tensor, active: Tensor, age: Tensor, removed: int, epoch: int, epochs: int
    ) -> tuple[int, int, Tensor]:
        """Decide which active input neurons stay.

        Args:
            strong: strength of every input neuron, [inputs].
            active: bool [inputs].
            age: updates that each has gone through since it came in, [inputs].
            removed: neurons removed so far.
            epoch: from 0.
            epochs: of the whole run.

        Returns:
            Neurons removed so far, neurons that may come in, and which stay, bool [inputs].
        """
        target = self.removals(len(strong))
        exchanged = whole(removed * self.zeta_in * (1 - epoch / epochs))
        fall = math.ceil((target - removed) / max(1, whole(self.remove_until * epochs) - epoch))
        fall = max(0, fall)
        staying = len(strong) - removed - fall - exchanged
        best = keep_top(strong.masked_fill(~active, -1.0), max(0, staying)) & active
        if removed + fall >= target:
            return removed + fall, exchanged, best
        kept = active & (best | (age < 1))
        gone = int(active.sum()) - int(kept.sum())  # fewer, where weak ones are too young
        return removed + min(fall, gone), max(0, min(exchanged, gone - fall)), kept

    def _connect(self, layer: SparseLayer, kept: Tensor, active: Tensor, number: int) -> None:
        """Drop the weights of neurons that go and the weakest of those that stay; grow until there are ``number``."""
        positions, values, inputs = layer.positions(), layer.values(), layer.shape[1]
        keep = kept.to(positions.device)[positions % inputs]
        keep[keep.clone()] = drop_by_sign(values[keep], self.zeta_in)
        columns = active.nonzero().flatten().to(positions.device)
        rows = torch.arange(layer.shape[0], device=positions.device)
        free = (rows[:, None] * inputs + columns).flatten()
        free = free[~torch.isin(free, positions[keep], assume_unique=True)]
        room = min(number - int(keep.sum()), len(free))
        grown = free[keep_top(layer.gradients_at(free), room)]
        layer.move(keep, grown, torch.zeros(len(grown)))


def strength(layer: SparseLayer) -> Tensor:
    """Return the sum of |w| of every input neuron, fp32 [inputs]."""
    values, columns = layer.values().abs(), layer.positions() % layer.shape[1]
    return values.new_zeros(layer.shape[1]).index_add_(0, columns, values)


def _strongest_gradients(layer: SparseLayer, candidates: Tensor, most: int) -> Tensor:
    """Mark the ``most`` candidate inputs with the largest single |gradient|, bool [inputs]."""
    found = torch.zeros_like(candidates)
    columns = candidates.nonzero().flatten()
    if most and len(columns):
        rows = torch.arange(layer.shape[0])
        positions = (rows[:, None] * layer.shape[1] + columns).flatten().to(layer.positions().device)
        largest = layer.gradients_at(positions).reshape(len(rows), -1).amax(0).cpu()
        found[columns[keep_top(largest, min(most, len(columns)))]] = True
    return found


def _rewire(layer: SparseLayer, part: float) -> None:
    """Drop a share of either sign nearest to zero; grow as many by |gradient|, all with value 0."""
    positions = layer.positions()
    keep = drop_by_sign(layer.values(), part)
    grown = layer.top_gradient(int((~keep).sum()), positions[keep])
    layer.move(keep, grown, torch.zeros(len(grown)))

"""Fine-tuning a pruned model without losing its zeros."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lowdim.core.errors import LowdimError
from lowdim.core.masks import Masks, zero_
from lowdim.models.disk.adapters import is_adapted
from lowdim.models.structure.selection import named_weights
from lowdim.models.structure.zeros import refuse_packed
from lowdim.train.dynamic.static import Static
from lowdim.train.sparse.distributed import local, part
from lowdim.train.sparse.training import SparseTraining


class KeepZeros(SparseTraining):
    """Keeps the zeros of a pruned model while an optimizer trains the other weights: `SparseTraining` with its masks.

    Construct it after the optimizer, then train as before: after every step the weights that were zero are +0.0.
    Frozen layers keep their zeros by themselves and are left alone, until they are trained after all: theirs stay too.

    Args:
        model: pruned, with dense storage: as Transformers reads it.
        optimizer: holds all weights that are pruned and trained. Any that takes one gradient per step; what it
            remembers of a weight need not be of the weight's shape, since none ever comes back.
        masks: which weights are kept, such as ``Masks.load("pruned/")``; None takes the zeros of the model. Layers
            without a mask are trained as they are.
        total_steps: is not needed, and taken as callbacks give it.

    Raises:
        LowdimError: the model was not pruned, is packed or has adapters; masks name what it lacks, or switch off
            weights that are not zero; the optimizer lacks a weight. Nothing has been changed then.

    Example:
        >>> import torch
        >>> layer = nn.Linear(4, 1, bias=False)
        >>> _ = layer.weight.data.copy_(torch.tensor([[1.0, 0.0, 2.0, 0.0]]))
        >>> optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
        >>> keep = KeepZeros(layer, optimizer)
        >>> layer(torch.ones(1, 4)).sum().backward()
        >>> optimizer.step()
        >>> layer.weight != 0
        tensor([[ True, False,  True, False]])
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        masks: Mapping[str, Tensor] | None = None,
        *,
        total_steps: int | None = None,
    ) -> None:
        refuse_packed(model)
        if is_adapted(model):
            raise LowdimError(
                f"{type(model).__name__} has adapters of PEFT, which train beside the zeros and fill them when they "
                "are merged. Call lowdim.train.adapters.peft.mask_lora(model) instead, once, before training"
            )
        found = Masks.of(model) if masks is None else masks if isinstance(masks, Masks) else Masks.from_dict(masks)
        weights = named_weights(model)
        found.check(weights)
        trained = {n: found[n] for n in found if (weights[n] if n in weights else weights[f"{n}.weight"]).requires_grad}
        if not trained:
            raise LowdimError(
                f"no weight that is trained has a mask ({len(found)} with one are frozen, and keep their zeros by "
                "themselves). Leave KeepZeros out, or unfreeze what is to be trained first"
            )
        super().__init__(model, optimizer, method=Static(), masks=trained, total_steps=total_steps)
        self._found = found
        self._frozen = {n: weights[n] if n in weights else weights[f"{n}.weight"] for n in found if n not in trained}
        self._woken: dict[str, Tensor] = {}

    def weights(self) -> list[tuple[str, Tensor]]:
        """Return the weights whose zeros are kept, those that are frozen too."""
        return [*super().weights(), *self._frozen.items()]

    def gradients(self, step: int) -> bool:
        """Clear what the gradients hold of weights that are off, of layers that were frozen at first too."""
        for name, weight in self._frozen.items():
            if weight.requires_grad and name not in self._woken:
                self._woken[name] = part(~self._found[name].to(weight.device), weight)
        for name, off in self._woken.items():
            if (gradient := self._frozen[name].grad) is not None:
                zero_(local(gradient), off)
        return super().gradients(step)

    def stepped(self, step: int) -> None:
        """Zero what is off."""
        super().stepped(step)
        with torch.no_grad():
            for name, off in self._woken.items():
                zero_(local(self._frozen[name]), off)

    def _recipe(self) -> dict[str, Any]:
        """Return what a state must share with this: neither the length of the run, nor zeros that training made."""
        return {key: value for key, value in super()._recipe().items() if key in ("layers", "pattern")}

    def _load(self, state: Mapping[str, Any], proven: bool = True) -> None:
        super()._load(state, proven)
        self.targets = {layer.name: layer.kept for layer in self.layers}

"""Weight decay by the spectrum in any loop: what the decay of an optimizer lacks is made up for before its steps."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lowdim.core.errors import LowdimError
from lowdim.models import ranks
from lowdim.models.structure.selection import Weight, weights
from lowdim.train.ride import Ride, Rider, optimizer_of
from lowdim.train.riders.alphadecay import AlphaDecay
from lowdim.train.sparse.distributed import full, local, ranks_agree


class SpectralDecay(Rider):
    """Lets an optimizer decay each matrix by its spectrum: construct it after the optimizer, then train as before.

    The groups of the optimizer are left alone, so that schedulers and checkpoints are too: what its own decay lacks, or
    has too much, is made up for before each step. Decoupled, a weight is multiplied by
    ``(1 - lr eta ratio) / (1 - lr eta)``; coupled, ``eta (ratio - 1)`` times the weight is added to its gradient.

    Matrices of linear and convolutional layers take part, but for the head, routers, what is tied to an embedding, what
    is frozen, and what decays by 0. Ranks of DistributedDataParallel or ``fully_shard`` share the work of measuring.

    Args:
        model: in training, wrapped or not.
        optimizer: AdamW, Adam, SGD or Muon of torch, with a weight decay.
        method: the settings.
        total_steps: is not needed, and taken as callbacks give it.

    Attributes:
        alphas: the exponents measured last, by name of the weight; NaN for what has none.
        ratios: factors of the weight decay by which each is decayed now.

    Raises:
        LowdimError: the optimizer decays nothing, or in a way that is not known.

    Example:
        >>> layers = torch.nn.Sequential(*(torch.nn.Linear(64, 64) for _ in range(3)))
        >>> optimizer = torch.optim.AdamW(layers.parameters(), weight_decay=0.1)
        >>> decay = SpectralDecay(layers, optimizer)
        >>> layers(torch.ones(1, 64)).sum().backward()
        >>> optimizer.step()
        >>> sorted(decay.ratios)  # the last layer is the head
        ['0.weight', '1.weight']
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Any,
        method: AlphaDecay | None = None,
        *,
        total_steps: int | None = None,
    ) -> None:
        self.method = method or AlphaDecay()
        self.optimizer = optimizer_of(optimizer)
        self._decoupled = _decoupled(self.optimizer)
        self._high = self.method.high if self.method.high is not None else (5.0 if self._decoupled else 3.0)
        self._together = ranks_agree(model)
        groups = {p: g for g in self.optimizer.param_groups for p in g["params"]}
        found = [w for w in weights(model) if _takes_part(w) and groups.get(w.parameter, {}).get("weight_decay")]
        found = [w for w in found[int(self.method.skip_first) :] if _count(w.parameter) >= self.method.least]
        if not found:
            raise LowdimError(
                f"there is no matrix to decay by its spectrum: none of {self.method.least} eigenvalues or more is in a "
                "group of the optimizer whose weight_decay is above 0. Set one, or a smaller least"
            )
        self._weights: dict[str, Any] = {w.name: w.parameter for w in found}
        self._warned = False
        self.alphas: dict[str, float] = {}
        self.ratios: dict[str, float] = dict.fromkeys(self._weights, 1.0)
        self._ride = Ride.board(self.optimizer, self)

    def weights(self) -> list[tuple[str, Tensor]]:
        """Return the matrices that it decays."""
        return [*self._weights.items()]

    def gradients(self, step: int) -> bool:
        """Measure if it is time, and make up for what the decay of the optimizer lacks or has too much."""
        if (step - 1) % self.method.every == 0:
            self.alphas = self._measured()
            self.ratios = self.method.ratios(self.alphas, self._high)
        with torch.no_grad():
            groups = {p: g for g in self.optimizer.param_groups for p in g["params"]}  # others after load_state_dict
            for name, weight in self._weights.items():
                if weight.grad is not None and self.ratios[name] != 1.0:
                    self._correct(weight, groups[weight], self.ratios[name])
        return False

    def _correct(self, weight: Any, group: Mapping[str, Any], ratio: float) -> None:
        decay, held = group["weight_decay"], local(weight)
        if not self._decoupled:
            scale = float(getattr(self.optimizer, "grad_scale", None) or 1.0)  # a fused optimizer divides by it
            local(weight.grad).add_(held, alpha=(-scale if group.get("maximize") else scale) * decay * (ratio - 1.0))
            return
        if held.dtype.itemsize < 4 and not self._warned:
            self._warned = True
            warnings.warn(
                f"weights are {str(held.dtype).removeprefix('torch.')}, which rounds decays of lr * weight_decay away: "
                "train with fp32 copies (Loop(master=True)), or in mixed precision over fp32 weights",
                stacklevel=2,
            )
        shrink = group["lr"] * decay
        held.mul_((1.0 - shrink * ratio) / (1.0 - shrink))

    def _measured(self) -> dict[str, float]:
        """Return the exponents, each rank measuring a share of them."""
        size, rank = (ranks.size(), ranks.rank()) if self._together else (1, 0)
        mine: dict[str, float] = {}
        for index, (name, weight) in enumerate(self._weights.items()):
            whole = full(weight.detach())  # every rank gathers, one measures
            if index % size == rank:
                mine[name] = self.method.exponent(whole)
        every = ranks.gathered(mine) if self._together else [mine]
        found = {name: alpha for part in every for name, alpha in part.items()}
        return {name: found[name] for name in self._weights}

    def stepped(self, step: int) -> None:
        """Leave the weights."""

    def state_dict(self) -> dict[str, Any]:
        """Return the steps done and the exponents that are in force."""
        return {"step": self.step, "alphas": dict(self.alphas)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the exponents of a state."""
        if state["alphas"] and state["alphas"].keys() != self._weights.keys():
            raise LowdimError(
                "the state of SpectralDecay is of another model, or of other settings; nothing was changed"
            )
        self.step, self.alphas = int(state["step"]), dict(state["alphas"])
        if self.alphas:
            self.ratios = self.method.ratios(self.alphas, self._high)

    def remove(self) -> None:
        """Get off: the optimizer decays by its own groups again."""
        self._ride.leave(self)


def _takes_part(w: Weight) -> bool:
    return not w.dense and not w.stacked


def _count(weight: Any) -> int:
    """Return how many eigenvalues a matrix, or the kernels of a convolution, have."""
    out, width, *kernel = weight.shape
    return int(min(out, width) * math.prod(kernel))


def _decoupled(optimizer: Any) -> bool:
    """Tell whether an optimizer decays weights by themselves, not through the gradient.

    Raises:
        LowdimError: what it does is not known.
    """
    apart, coupled = (torch.optim.AdamW, torch.optim.Muon), (torch.optim.Adam, torch.optim.SGD)
    if isinstance(optimizer, apart):
        return True
    if isinstance(optimizer, coupled):
        return bool(optimizer.defaults.get("decoupled_weight_decay", False))
    raise LowdimError(
        f"how {type(optimizer).__name__} decays weights is not known. Decay by the spectrum is for AdamW, Adam, SGD "
        "and Muon of torch.optim"
    )

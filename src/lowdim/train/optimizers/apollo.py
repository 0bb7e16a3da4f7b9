"""APOLLO: the full gradient, scaled as Adam would scale it in a random small space."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from lowdim.core.lazy import torch
from lowdim.core.settings import count, within
from lowdim.train.optimizers.base import OptimizerRule, groups, matrices, trainable
from lowdim.train.optimizers.projectors import Random

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lowdim.train.optimizers.projected import Projected
    from lowdim.train.optimizers.projector import Held

TINY = 1e-8


@dataclass(frozen=True)
class Scaling(Random):
    """Gives back the gradient itself, each channel as long as the optimizer made its random projection.

    Args:
        rank: directions of the random projection.
        gap: steps of a matrix between two draws.
        scale: the step has its root as a factor.
        side: which side of a matrix is projected; "full" is none of the paper's.
        seed: of the draws.
        channels: "channel" scales each vector along the projected side by itself, "tensor" the matrix as a whole.
        growth: times the norm of the last step that a step may have.
    """

    side: Literal["std", "reverse_std", "left", "right"] = "std"
    channels: Literal["channel", "tensor"] = "channel"
    growth: float = within(1.01, least=1)

    def back(self, update: Tensor, held: Held, gradient: Tensor, rate: float) -> Tensor:
        """Return -s G, s the length of the step over that of the projected gradient; remembers the norm of G s."""
        small, axis = self.project(gradient, held), 1 if "on_right" in held else 0
        if self.channels == "channel":
            factor = update.norm(dim=axis, keepdim=True) / (small.norm(dim=axis, keepdim=True) + TINY)
        else:
            factor = update.norm() / (small.norm() + TINY)
        change: Tensor = gradient * factor
        norm = change.norm().float() / (rate or 1.0)
        last = held.setdefault("norm", torch.full_like(norm, torch.inf))
        if rate:
            most = self.growth * last
            limit = torch.where(norm > most, most / (norm + TINY), 1.0)
            change, held["norm"] = change * limit.to(change.dtype), norm * limit
        scaled: Tensor = -(self.scale**0.5) * change
        return scaled


@dataclass(frozen=True)
class APOLLO(OptimizerRule):
    """The gradient G [m, n] itself, scaled by what Adam does to its random projection.

    With P Gaussian of variance 1/r on the smaller side, Adam turns R = G P^T (or P G) into N; the step is
    - lr sqrt(scale) G s, s_j = |N_j| / |R_j| for each row j (column, where n > m), or one s for the whole matrix. A
    step whose norm exceeds 1.01 times the last one's is shortened to that. No decomposition, and P is drawn again at
    every use: the state of a matrix is 2 r max(m, n) numbers.

    Paper: "APOLLO: SGD-like Memory, AdamW-level Performance", arXiv 2412.05270.

    Args:
        lr: learning rate at its peak; a schedule scales it.
        weight_decay: decoupled, of projected weights and the rest alike.
        beta1: how long Adam's mean of the gradient remembers.
        beta2: how long its mean of the square does.
        eps: added to the root of that mean.
        rank: r; a quarter of the width of the model, or 1 with ``channels`` "tensor" (APOLLO-Mini).
        gap: steps between two draws of P.
        scale: 1 with a rank of a quarter, 128 with rank 1.
        channels: "channel" or "tensor", what shares an s.
        layerwise: update every weight in the backward pass and free its gradient; see `Projected`.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 6))
        >>> optimizer = APOLLO(rank=1, scale=128.0, channels="tensor").build(net)
        >>> net(torch.ones(1, 8)).sum().backward()
        >>> optimizer.step()
        >>> tuple(optimizer.state[net[0].weight]["exp_avg"].shape)
        (1, 8)
    """

    alone: ClassVar[bool] = False

    lr: float = within(0.01, above=0)
    beta2: float = within(0.999, least=0, below=1)
    eps: float = within(1e-6, above=0)
    rank: int = count(128)
    gap: int = count(200)
    scale: float = within(1.0, above=0)
    channels: Literal["channel", "tensor"] = "channel"
    layerwise: bool = False

    @classmethod
    def fine_tuning(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the paper's settings for commonsense reasoning (table 12): rank 32, or 1 of a "tensor", and 3e-4.

        Its factors on the step, the roots of 5 and 128, are those of ``scale`` 5 and 128.

        Example:
            >>> APOLLO.for_fine_tuning(channels="tensor").scale
            128.0
        """
        mini = given.get("channels") == "tensor"
        return {"lr": 3e-4, "rank": 1 if mini else 32, "scale": 128.0 if mini else 5.0}

    def build(self, model: nn.Module) -> Projected:
        """Return the optimizer of a model's trainable parameters.

        Raises:
            LowdimError: there is no matrix, or one with a side smaller than the rank.
        """
        from lowdim.train.optimizers.projected import Projected

        inner = torch.optim.AdamW(groups(model, trainable(model)), **self._adam(self.lr, self.weight_decay))
        projector = Scaling(rank=self.rank, gap=self.gap, scale=self.scale, channels=self.channels)
        return Projected(inner, projector, matrices(model), layerwise=self.layerwise)

    def bytes_of(self, weight: torch.Tensor, matrix: bool) -> tuple[int, int]:
        """Return the bytes of a weight and of its state: a matrix has Adam's two numbers of the small space."""
        entries = self.rank * max(weight.shape) if matrix else weight.numel()
        return weight.nbytes, 2 * entries * weight.itemsize

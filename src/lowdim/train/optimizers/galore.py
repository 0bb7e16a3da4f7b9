"""GaLore: an optimizer that remembers gradients in their leading directions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from lowdim.core.errors import RecipeError
from lowdim.core.lazy import torch
from lowdim.core.settings import Moot, count, within
from lowdim.train.optimizers.base import OptimizerRule, groups, matrices, trainable
from lowdim.train.optimizers.projectors import SVD, Power, Random, Randomised

if TYPE_CHECKING:
    from torch import nn

    from lowdim.train.optimizers.projected import Projected
    from lowdim.train.optimizers.projector import Projector


@dataclass(frozen=True)
class GaLore(OptimizerRule):
    """Adam in the r leading singular directions of each matrix's gradient, found anew every ``gap`` steps.

    A gradient G [m, n] with m >= n is projected to G R^T [m, r], R [r, n] its first right singular vectors; one with
    m < n to L G [r, n], L [r, m] the left ones. Adam's step u of the small gradient gives W <- W + scale * u R, or
    scale * L^T u. Matrices inside the blocks are projected; embeddings, head, norms and biases have Adam as it is.

    State of a matrix: r (min(m, n) + 2 max(m, n)) numbers, where Adam has 2 m n.

    Paper: "GaLore: Memory-Efficient LLM Training by Gradient Low-Rank Projection", arXiv 2403.03507.

    Args:
        lr: learning rate at its peak; a schedule scales it.
        weight_decay: decoupled and not scaled, of projected weights and the rest alike; "sgd" adds it to the gradient.
        beta1: how long Adam's mean of the gradient remembers; the momentum of "sgd".
        beta2: how long its mean of the square does.
        eps: added to the root of that mean.
        rank: r; a quarter of the width of the model in the paper, at most the smaller side of every matrix.
        gap: steps between two choices of directions.
        scale: of the projected weights' step.
        side: "std" projects the smaller side, "reverse_std" the larger; "left", "right" or "full" (both) always.
        projector: "svd" is exact; "power" goes on from the last directions, "randomised" sketches, both without a
            decomposition of G; "random" looks at no gradient.
        inner: the optimizer of the small space and of the rest; "adamw8bit" keeps its means in 8 bits.
        layerwise: update every weight in the backward pass and free its gradient; see `Projected`.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Embedding(9, 8), torch.nn.Linear(8, 6))
        >>> optimizer = GaLore(rank=2).build(net)
        >>> net(torch.arange(3)).sum().backward()
        >>> optimizer.step()
        >>> [tuple(optimizer.state[p]["exp_avg"].shape) for p in net.parameters()]
        [(9, 8), (2, 8), (6,)]
    """

    alone: ClassVar[bool] = False

    moot: ClassVar[Moot] = dict.fromkeys(("beta2", "eps"), ("inner", ("sgd", "adafactor"))) | {
        "beta1": ("inner", ("adafactor",))
    }
    lr: float = within(0.01, above=0)
    beta2: float = within(0.999, least=0, below=1)
    eps: float = within(1e-6, above=0)
    rank: int = count(128)
    gap: int = count(200)
    scale: float = within(0.25, above=0)
    side: Literal["std", "reverse_std", "left", "right", "full"] = "std"
    projector: Literal["svd", "power", "randomised", "random"] = "svd"
    inner: Literal["adamw", "adamw8bit", "adafactor", "sgd"] = "adamw"
    layerwise: bool = False

    @classmethod
    def fine_tuning(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the authors' settings for GLUE: rank 8, scale 4, gap 500 and a rate of 3e-5.

        Example:
            >>> GaLore.for_fine_tuning(rank=4).scale
            4.0
        """
        return {"lr": 3e-5, "rank": 8, "scale": 4.0, "gap": 500}

    def build(self, model: nn.Module) -> Projected:
        """Return the optimizer of a model's trainable parameters.

        Raises:
            LowdimError: there is no matrix, or one with a side smaller than the rank.
        """
        from lowdim.train.optimizers.projected import Projected

        return Projected(
            self._inner(groups(model, trainable(model))), self._projector(), matrices(model), layerwise=self.layerwise
        )

    def check_shards(self) -> None:
        """Refuse Adafactor, whose means over rows and columns are of whole matrices."""
        if self.inner == "adafactor":
            raise RecipeError(
                "optimizer.inner=adafactor takes means over rows and columns, and parallel=fsdp cuts weights over the "
                "processes. Take optimizer.inner=adamw or sgd, or parallel=ddp."
            )

    def bytes_of(self, weight: torch.Tensor, matrix: bool) -> tuple[int, int]:
        """Return the bytes of a weight and of its state: directions, and the inner state of the small space."""
        if not matrix:
            return weight.nbytes, self._inner_bytes(tuple(weight.shape), weight.itemsize)
        shape = list(weight.shape)
        held = 0
        for side in self._projector().sides(tuple(weight.shape)):
            axis = 0 if side == "left" else 1
            held += self._direction_bytes(weight.shape[axis], weight.itemsize)
            shape[axis] = self.rank
        return weight.nbytes, held + self._inner_bytes(tuple(shape), weight.itemsize)

    def _direction_bytes(self, width: int, size: int) -> int:
        return 0 if self.projector == "random" else self.rank * width * size

    def _inner_bytes(self, shape: tuple[int, ...], size: int) -> int:
        entries = prod(shape)
        if self.inner == "adamw8bit":
            return 8 * entries if entries < 4096 else 2 * (entries + 4 * -(-entries // 256))
        if self.inner == "adafactor":
            return size * (entries // shape[-1] + entries // shape[-2] if len(shape) > 1 else entries)
        return size * entries * (1 if self.inner == "sgd" else 2)

    def _projector(self) -> Projector:
        kinds: dict[str, type[Projector]] = {"svd": SVD, "power": Power, "randomised": Randomised, "random": Random}
        return kinds[self.projector](rank=self.rank, gap=self.gap, scale=self.scale, side=self.side)

    def _inner(self, parameters: list[dict[str, Any]]) -> torch.optim.Optimizer:
        if self.inner == "sgd":
            return torch.optim.SGD(parameters, lr=self.lr, momentum=self.beta1, weight_decay=self.weight_decay)
        if self.inner == "adafactor":
            return torch.optim.Adafactor(parameters, lr=self.lr, weight_decay=self.weight_decay)
        settings = self._adam(self.lr, self.weight_decay)
        if self.inner == "adamw":
            return torch.optim.AdamW(parameters, **settings)
        from lowdim.train.optimizers.eight_bit import AdamW8bit

        del settings["fused"]
        return AdamW8bit(parameters, **settings)

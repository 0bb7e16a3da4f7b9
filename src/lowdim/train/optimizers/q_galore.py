"""Q-GaLore: GaLore with weights in 8 bits, directions in 4, and few decompositions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from lowdim.core.errors import LowdimError
from lowdim.core.lazy import torch
from lowdim.core.settings import Moot, count, within
from lowdim.train.optimizers.base import groups, matrices, trainable
from lowdim.train.optimizers.galore import GaLore
from lowdim.train.optimizers.lazy import LazyPower, LazySVD

if TYPE_CHECKING:
    from torch import nn

    from lowdim.train.optimizers.projected import Projected
    from lowdim.train.optimizers.projector import Projector


@dataclass(frozen=True)
class QGaLore(GaLore):
    """GaLore that keeps the weights of the blocks as 8-bit codes and no float copy of them.

    A weight is s (q - z), q in 0..255 with a scale s and a zero z for every 256; an update is added to it and rounded
    to a new grid, up with the probability of the fraction, so that updates smaller than s count on average. Directions
    are 4-bit codes of the same kind, two a byte. Where the directions of a matrix overlap with their predecessors, the
    gap between its decompositions doubles (`Lazy`).

    A matrix of m >= n: (1 + 5/256) m n bytes of weight; of state r n (1/2 + 5/256) for directions and 2 r m (1 + 4/256)
    for the two means. Gradients are floats; ``layerwise`` frees each one at once.

    Paper: "Q-GaLore: Quantized GaLore with INT4 Projection and Layer-Adaptive Low-Rank Gradients", arXiv 2407.08296.

    Args:
        lr: learning rate at its peak; a schedule scales it.
        weight_decay: decoupled and not scaled, of projected weights and the rest alike; "sgd" adds it to the gradient.
        beta1: how long Adam's mean of the gradient remembers; the momentum of "sgd".
        beta2: how long its mean of the square does.
        eps: added to the root of that mean.
        rank: directions; a quarter of the width of the model in the paper, at most the smaller side of every matrix.
        gap: steps between two choices of directions, at first.
        scale: of the projected weights' step.
        side: which side of a matrix is projected, see `GaLore`.
        projector: "svd" is exact; "power" goes on from the last directions.
        inner: the optimizer of the small space and of the rest.
        layerwise: update every weight in the backward pass and free its gradient; see `Projected`.
        weight_bits: 8, or 32 for weights as they are.
        direction_bits: 4, or 32 for directions as the gradient is.
        stochastic: round weights by chance; to the nearest if not, which loses small updates.
        tau: overlap from which directions stand still; above 1 they never do.
        gamma: factor on the gap then.
        queue: choices of directions that the mean overlap is over.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 6, bias=False))
        >>> optimizer = QGaLore(rank=2).build(net)
        >>> net(torch.ones(1, 8)).sum().backward()
        >>> optimizer.step()
        >>> net[0].weight.codes.dtype, tuple(optimizer.state[net[0].weight]["projector.left"].shape)
        (torch.uint8, (6,))
    """

    moot: ClassVar[Moot] = {**GaLore.moot, "stochastic": ("weight_bits", (32,))}
    lr: float = within(0.015, above=0)
    projector: Literal["svd", "power"] = "svd"
    inner: Literal["adamw", "adamw8bit", "adafactor", "sgd"] = "adamw8bit"
    weight_bits: Literal[8, 32] = 8
    direction_bits: Literal[4, 32] = 4
    stochastic: bool = True
    tau: float = within(0.4, above=0)
    gamma: int = count(2)
    queue: int = count(5)

    def check_model(self, model: nn.Module) -> None:
        """Refuse a model whose matrices are not all of layers that compute with INT8 weights.

        Raises:
            LowdimError: names the first that is not.
        """
        from lowdim.nn.int8 import linear

        fit = {id(module._parameters.get("weight")) for module in model.modules() if linear(module)}
        others = {id(weight) for weight in matrices(model)} - fit if self.weight_bits == 8 else set()
        for name, weight in model.named_parameters():
            if id(weight) in others:
                raise LowdimError(
                    f"weight_bits=8 keeps weights of linear layers (and of Conv1D) in 8 bits, and {name} is of no such "
                    "layer. Set weight_bits=32, which keeps all weights as they are, or freeze it."
                )

    def prepare_(self, model: nn.Module) -> None:
        """Make the weights of the blocks INT8, as `build` does where they are not yet; of shards they must be.

        Raises:
            LowdimError: as of `build`; or the model is sharded already.
        """
        from lowdim.nn.int8 import Int8Weight, int8_
        from lowdim.train.sparse.distributed import local

        self.check_model(model)
        targets, projector = matrices(model), self._projector()
        for weight in targets:
            projector.sides(tuple(weight.shape))
        if self.weight_bits == 8 and not all(isinstance(local(weight), Int8Weight) for weight in targets):
            int8_(model, targets, self.stochastic)

    def build(self, model: nn.Module) -> Projected:
        """Return the optimizer of a model's trainable parameters, of which those of the blocks become INT8 weights.

        Raises:
            LowdimError: there is no matrix, one with a side smaller than the rank, or one of a layer that has no INT8
                weights; nothing has been changed then.
        """
        from lowdim.train.optimizers.projected import Projected

        self.prepare_(model)
        targets, projector = matrices(model), self._projector()
        return Projected(self._inner(groups(model, trainable(model))), projector, targets, layerwise=self.layerwise)

    def bytes_of(self, weight: torch.Tensor, matrix: bool) -> tuple[int, int]:
        """Return the bytes of a weight, as codes if it is a matrix, and of its state."""
        floats, state = super().bytes_of(weight, matrix)
        codes = weight.numel() + 5 * -(-weight.numel() // 256)
        return (codes if matrix and self.weight_bits == 8 else floats), state

    def _direction_bytes(self, width: int, size: int) -> int:
        entries = self.rank * width
        return -(-entries // 2) + 5 * -(-entries // 256) if self.direction_bits == 4 else entries * size

    def _projector(self) -> Projector:
        kinds: dict[str, type[LazySVD | LazyPower]] = {"svd": LazySVD, "power": LazyPower}
        return kinds[self.projector](
            rank=self.rank,
            gap=self.gap,
            scale=self.scale,
            side=self.side,
            bits=self.direction_bits,
            tau=self.tau,
            gamma=self.gamma,
            queue=self.queue,
        )

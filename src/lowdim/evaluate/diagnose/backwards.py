"""The way backwards: gradient norms of all parameters, and random probes of every block's Jacobian."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lowdim.core.errors import NumericalError
from lowdim.core.progress import Progress
from lowdim.core.random import generator
from lowdim.evaluate.diagnose.forwards import Forwards
from lowdim.evaluate.diagnose.measures import Jacobian
from lowdim.models.walk.gradients import backwards
from lowdim.models.walk.stream import Block, Stream


def gradient_norms(
    stream: Stream, found: Forwards, progress: Progress, *, norms: bool, probes: int, seed: int
) -> tuple[dict[str, float], list[Jacobian]]:
    """Return the Frobenius norm of every parameter's gradient, by full name, and what probes of the blocks found.

    The gradient is that of the mean next-token loss over the whole text. The norm over several parameters is the root
    of the sum of their squares.

    Args:
        stream: the model.
        found: what the way forwards kept; used up.
        progress: told of every block.
        norms: whether norms are wanted; there are none otherwise.
        probes: random vectors per block and batch.
        seed: draws them.

    Raises:
        NumericalError: a gradient is NaN or Inf; the parameter is named.
    """
    lengths: dict[str, float] = {}
    jacobians = [Jacobian() for _ in range(len(stream))]

    def parameters(block: Block) -> dict[str, torch.nn.Parameter]:
        return block.parameters() if norms else {}

    with progress.stage("Gradients", len(stream), "blocks") as stage:
        look = _looking(jacobians, probes, seed)
        walk = backwards(stream, found.activations, found.entering, lambda block: [*parameters(block).values()], look)
        for block, gradients in walk:
            for name, gradient in zip(parameters(block), gradients, strict=True):
                lengths[name] = float(gradient.double().norm())
                if not lengths[name] < float("inf"):
                    raise NumericalError(
                        f"the gradient of the loss with respect to {name!r} holds NaN or Inf. Try compute='float32'."
                    )
            stage.advance()
    return lengths, jacobians


def _looking(jacobians: list[Jacobian], probes: int, seed: int) -> Callable[[Block, Tensor, Tensor], None]:
    def look(block: Block, entering: Tensor, leaving: Tensor) -> None:
        seen = jacobians[block.index]
        for _ in range(probes):
            rng = generator(seed, "jacobian", block.index, seen.count)
            probe = torch.randint(2, leaving.shape, generator=rng).mul_(2).sub_(1).to(leaving.device, leaving.dtype)
            (pulled,) = torch.autograd.grad(leaving, entering, probe, retain_graph=True, allow_unused=True)
            seen.add(probe, torch.zeros_like(probe) if pulled is None else pulled)

    return look

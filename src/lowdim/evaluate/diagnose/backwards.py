"""The way backwards: gradient norms of all parameters, and random probes of every block's Jacobian."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lowdim.core.errors import NumericalError
from lowdim.core.progress import Progress
from lowdim.core.random import generator
from lowdim.evaluate.diagnose.forwards import Forwards
from lowdim.evaluate.diagnose.measures import Jacobian
from lowdim.models.walk.gradients import backwards
from lowdim.models.walk.stream import Block, Stream
from lowdim.nn.residual.added import Gates


def gradient_norms(
    stream: Stream, found: Forwards, progress: Progress, *, norms: bool, probes: int, seed: int
) -> tuple[dict[str, float], list[Jacobian]]:
    """Return the Frobenius norm of every parameter's gradient, by full name, and what probes of the blocks found.

    The gradient is that of the mean next-token loss over the whole text, as training has it: gates of GPAS pass it on
    whole. The norm over several parameters is the root of the sum of their squares. Probes are of the true derivative,
    in which gates count.

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

    with progress.stage("Gradients", len(stream), "blocks") as stage, _derived(stream.model) as gated:
        look = _looking(jacobians, probes, seed, gated)
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


class _Gated:
    """A hook of gates that lets gradients through as the derivative 1 - silu(a) does, while it is on."""

    on = False

    def __call__(self, gates: Gates, args: tuple[Tensor, int], out: Tensor) -> None:
        if out.requires_grad:
            kept = 1 - gates.share(args[1]).detach().to(out.dtype)
            out.register_hook(lambda gradient: gradient * kept if self.on else None)


@contextmanager
def _derived(model: nn.Module) -> Iterator[_Gated]:
    """Put a hook on all gates of a model for a while."""
    gated = _Gated()
    hooks = [module.register_forward_hook(gated) for module in model.modules() if isinstance(module, Gates)]
    try:
        yield gated
    finally:
        for hook in hooks:
            hook.remove()


def _looking(
    jacobians: list[Jacobian], probes: int, seed: int, gated: _Gated
) -> Callable[[Block, Tensor, Tensor], None]:
    def look(block: Block, entering: Tensor, leaving: Tensor) -> None:
        seen, gated.on = jacobians[block.index], True
        for _ in range(probes):
            rng = generator(seed, "jacobian", block.index, seen.count)
            probe = torch.randint(2, leaving.shape, generator=rng).mul_(2).sub_(1).to(leaving.device, leaving.dtype)
            (pulled,) = torch.autograd.grad(leaving, entering, probe, retain_graph=True, allow_unused=True)
            seen.add(probe, torch.zeros_like(probe) if pulled is None else pulled)
        gated.on = False

    return look

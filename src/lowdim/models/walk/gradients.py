"""Gradients of the next-token loss, the model streamed forwards and then backwards, one block resident at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lowdim.core.allocation import LayerInfo
from lowdim.core.errors import NumericalError
from lowdim.core.progress import Progress
from lowdim.data.batch import Batch
from lowdim.models import ranks
from lowdim.models.walk.calls import Activation
from lowdim.models.walk.stream import Block, Stream


def loss_gradients(
    stream: Stream, infos: Sequence[LayerInfo], batches: Sequence[Batch], progress: Progress
) -> dict[str, Tensor]:
    """Return the gradient of the mean next-token loss with respect to layers' weights, fp32 ``[out, in]``, by name.

    The way forwards keeps the hidden states that enter each block; on the way backwards each block runs again, with
    gradients. A weight that no token reaches has a gradient of zero. On several ranks the gradients are those of all
    ranks' batches.

    Raises:
        NumericalError: a gradient is NaN or Inf; the layer is named.
    """
    chosen = {info.name for info in infos}
    first = min((info.block for info in infos), default=len(stream))
    entering: list[list[Tensor]] = []
    found: dict[str, Tensor] = {}
    with progress.stage("Gradients of the loss", 2 * len(stream) - first, "blocks") as stage:
        activations = stream.capture(batches)
        for index in range(len(stream)):
            if index >= first:
                entering.append([activation.hidden for activation in activations])
            with stream.block(index) as block, torch.no_grad():
                for activation in activations:
                    block.advance(activation)
            stage.advance(1)

        def weights(block: Block) -> list[Tensor]:
            return [layer.module.get_parameter("weight") for layer in block.layers if layer.name in chosen]

        for block, gradients in backwards(stream, activations, entering, weights):
            layers = [layer for layer in block.layers if layer.name in chosen]
            for layer, gradient in zip(layers, gradients, strict=True):
                found[layer.name] = _checked(layer.name, gradient.t().contiguous() if layer.transposed else gradient)
            stage.advance(1)
    return found


def backwards(
    stream: Stream,
    activations: Sequence[Activation],
    entering: list[list[Tensor]],
    parameters: Callable[[Block], Sequence[Tensor]],
    look: Callable[[Block, Tensor, Tensor], None] = lambda *_: None,
) -> Iterator[tuple[Block, list[Tensor]]]:
    """Yield blocks from the last one down, each with the gradients of the mean next-token loss, fp32.

    Each block runs again, with gradients, one resident at a time.

    Args:
        stream: the model.
        activations: the states of all batches behind the last block.
        entering: for each of the last blocks, as many as are wanted, the hidden states that entered it, one per
            activation. The list is emptied on the way.
        parameters: the tensors of a block that gradients are taken with respect to; one that no token reaches has a
            gradient of zero.
        look: is shown each block, what enters it and what leaves it, while the graph between the two is there.
    """
    slopes, targets = _at_the_end(stream, activations)
    for index in reversed(range(len(stream) - len(entering), len(stream))):
        for activation, hidden in zip(activations, entering.pop(), strict=True):
            activation.hidden = hidden
        with stream.block(index) as block:
            totals = _backwards(block, parameters(block), activations, slopes, look)
            yield block, [total / targets for total in totals]


@torch.enable_grad()
def _at_the_end(stream: Stream, activations: Sequence[Activation]) -> tuple[list[Tensor], int]:
    """Return the summed loss's gradient with respect to what leaves the last block, and the number of targets."""
    slopes: list[Tensor] = []
    targets = torch.zeros(1, dtype=torch.int64, device=stream.device)
    for activation in activations:
        activation.hidden = activation.hidden.detach().requires_grad_()
    for activation, logits in zip(activations, stream.logits(activations), strict=True):
        ids, mask = activation.batch.input_ids[:, 1:].to(logits.device), activation.mask
        real = torch.ones_like(ids, dtype=torch.bool)
        if mask is not None:
            real = (mask[:, 1:] & mask[:, :-1]).to(logits.device)
        loss = cross_entropy(logits[:, :-1][real].float(), ids[real], reduction="sum")
        slopes += torch.autograd.grad(loss, activation.hidden)
        targets += int(real.sum())
    ranks.add_up([targets])
    return slopes, max(1, int(targets))


@torch.enable_grad()
def _backwards(
    block: Block,
    parameters: Sequence[Tensor],
    activations: Sequence[Activation],
    slopes: list[Tensor],
    look: Callable[[Block, Tensor, Tensor], None],
) -> list[Tensor]:
    """Return the gradients of parameters, summed over the batches; ``slopes`` become those of what enters the block."""
    totals = [torch.zeros_like(parameter, dtype=torch.float32, requires_grad=False) for parameter in parameters]
    with _differentiable(parameters):
        for place, activation in enumerate(activations):
            activation.hidden = hidden = activation.hidden.detach().requires_grad_()
            out = block.forward(activation)
            look(block, hidden, out)
            slopes[place], *own = torch.autograd.grad(out, [hidden, *parameters], slopes[place], allow_unused=True)
            for total, gradient in zip(totals, own, strict=True):
                if gradient is not None:
                    total += gradient
    ranks.add_up(totals)
    return totals


@contextmanager
def _differentiable(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Let gradients be taken with respect to parameters."""
    before = [parameter.requires_grad for parameter in parameters]
    for parameter in parameters:
        parameter.requires_grad_()
    try:
        yield
    finally:
        for parameter, flag in zip(parameters, before, strict=True):
            parameter.requires_grad_(flag)


def _checked(name: str, gradient: Tensor) -> Tensor:
    if not bool(gradient.isfinite().all()):
        raise NumericalError(
            f"the gradient of the loss with respect to {name!r} holds NaN or Inf. Try compute='float32', or a score "
            "that needs no gradient, such as 'wanda'."
        )
    return gradient.cpu()

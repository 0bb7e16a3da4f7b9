"""Gradients of the next-token loss, the model streamed forwards and then backwards, one block resident at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lowdim.core.allocation import LayerInfo
from lowdim.core.errors import NumericalError
from lowdim.core.progress import Progress
from lowdim.data.batch import Batch
from lowdim.models import ranks
from lowdim.models.structure.layers import Layer
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
            entering.append([activation.hidden for activation in activations])
            with stream.block(index) as block, torch.no_grad():
                for activation in activations:
                    block.advance(activation)
            stage.advance(1)
        slopes, targets = _at_the_end(stream, activations)
        for index in reversed(range(first, len(stream))):
            for activation, hidden in zip(activations, entering.pop(), strict=True):
                activation.hidden = hidden
            with stream.block(index) as block:
                layers = [layer for layer in block.layers if layer.name in chosen]
                for layer, total in zip(layers, _backwards(block, layers, activations, slopes), strict=True):
                    found[layer.name] = _checked(layer.name, total / targets)
            stage.advance(1)
    return found


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
    block: Block, layers: Sequence[Layer], activations: Sequence[Activation], slopes: list[Tensor]
) -> list[Tensor]:
    """Return the gradients of layers, summed over the batches; ``slopes`` become those of what enters the block."""
    totals = [torch.zeros(layer.shape, device=layer.master.device) for layer in layers]
    with _differentiable(layers) as weights:
        for place, activation in enumerate(activations):
            activation.hidden = hidden = activation.hidden.detach().requires_grad_()
            out = block.forward(activation)
            slopes[place], *own = torch.autograd.grad(out, [hidden, *weights], slopes[place], allow_unused=True)
            for layer, total, gradient in zip(layers, totals, own, strict=True):
                if gradient is not None:
                    total += gradient.t() if layer.transposed else gradient
    ranks.add_up(totals)
    return totals


@contextmanager
def _differentiable(layers: Sequence[Layer]) -> Iterator[list[Tensor]]:
    """Let gradients be taken with respect to layers' weights."""
    weights = [layer.module.get_parameter("weight") for layer in layers]
    before = [weight.requires_grad for weight in weights]
    for weight in weights:
        weight.requires_grad_()
    try:
        yield list(weights)
    finally:
        for weight, flag in zip(weights, before, strict=True):
            weight.requires_grad_(flag)


def _checked(name: str, gradient: Tensor) -> Tensor:
    if not bool(gradient.isfinite().all()):
        raise NumericalError(
            f"the gradient of the loss with respect to {name!r} holds NaN or Inf. Try compute='float32', or a score "
            "that needs no gradient, such as 'wanda'."
        )
    return gradient.cpu()

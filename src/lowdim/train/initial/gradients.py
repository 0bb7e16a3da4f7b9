"""Gradients of a loss with respect to chosen weights, leaving no trace in the network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lowdim.core.errors import NumericalError, RecipeError
from lowdim.core.random import derive_seed
from lowdim.train.initial.base import Start


@contextmanager
def untouched(model: nn.Module, seed: int) -> Iterator[None]:
    """Put buffers, modes and the global random state back on leaving, also after an error.

    Inside, gradients are recorded and what the network draws, such as dropout, follows from ``seed``. Parameters and
    their ``grad`` are not saved: use ``torch.autograd.grad``, which does not write them.
    """
    owners = [(m._buffers, dict(m._buffers)) for m in model.modules() if m._buffers]
    before = [(b, b.clone()) for _, found in owners for b in found.values() if b is not None]
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(d.index for d in devices)), torch.enable_grad():
        torch.manual_seed(derive_seed(seed, "initialisation"))
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, value in before:
                    buffer.copy_(value)
                for buffers, found in owners:
                    buffers.clear()
                    buffers.update(found)


def batches_of(start: Start) -> Iterator[tuple[Any, Any]]:
    """Yield (inputs, targets) on the device of the weights.

    A batch is a pair, or a mapping with "labels" as Hugging Face collators make it; one pair of tensors alone counts as
    one batch.
    """
    device = next(iter(start.weights.values())).device
    data = start.data
    single = isinstance(data, Mapping) or (
        isinstance(data, tuple) and len(data) == 2 and all(isinstance(x, Tensor) for x in data)
    )
    count = 0
    for batch in [data] if single else data:
        count += 1
        if isinstance(batch, Mapping) and "labels" in batch:
            inputs = {key: value for key, value in batch.items() if key != "labels"}
            yield _to(inputs, device), _to(batch["labels"], device)
        elif isinstance(batch, (tuple, list)) and len(batch) == 2:
            yield _to(batch[0], device), _to(batch[1], device)
        else:
            raise RecipeError(
                f"a batch must be a pair (inputs, targets) or a mapping with labels; got {type(batch).__name__}"
            )
    if not count:
        raise RecipeError("batches must hold at least one batch (inputs, targets); got none")


def _to(value: Any, device: torch.device) -> Any:
    if isinstance(value, Mapping):
        return {key: _to(item, device) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return tuple(_to(item, device) for item in value)
    return value.to(device) if isinstance(value, Tensor) else value


def outputs_of(model: nn.Module, inputs: Any) -> Any:
    """Run the network on a tensor, a tuple of arguments or a mapping of them; return its logits where it names them."""
    if isinstance(inputs, Mapping):
        outputs = model(**inputs)
    elif isinstance(inputs, tuple):
        outputs = model(*inputs)
    else:
        outputs = model(inputs)
    return getattr(outputs, "logits", outputs)


def gradients(
    start: Start, inputs: Any, targets: Any, temperature: float = 1.0, twice: bool = False
) -> dict[str, Tensor]:
    """Return the gradient of the loss for every chosen weight, zero where the loss does not depend on it.

    Args:
        start: the network, its weights and the loss.
        inputs: one batch.
        targets: its targets.
        temperature: the outputs are divided by this before the loss.
        twice: keep the graph, so that the gradient can be differentiated again.

    Raises:
        NumericalError: a gradient is NaN or infinite.
    """
    outputs = outputs_of(start.model, inputs)
    loss = (start.loss or nn.functional.cross_entropy)(
        outputs / temperature if temperature != 1.0 else outputs, targets
    )
    found = torch.autograd.grad(loss, list(start.weights.values()), create_graph=twice, allow_unused=True)
    named = {}
    for (name, weight), gradient in zip(start.weights.items(), found, strict=True):
        if gradient is not None and not bool(gradient.isfinite().all()):
            raise NumericalError(
                f"the gradient of {name} holds NaN or infinity at initialisation. Check the data, the loss and the "
                "initial scale"
            )
        named[name] = torch.zeros_like(weight) if gradient is None else gradient
    return named


@contextmanager
def differentiable_twice() -> Iterator[None]:
    """Use attention and recurrent kernels that have a second derivative."""
    with sdpa_kernel(SDPBackend.MATH), torch.backends.cudnn.flags(enabled=False):
        yield

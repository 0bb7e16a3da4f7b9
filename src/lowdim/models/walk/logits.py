"""Whether a model's logits are one linear layer of its last hidden states, and those hidden states."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.functional import linear

from lowdim.data.batch import Batch
from lowdim.models.walk.calls import swap
from lowdim.models.walk.inputs import model_inputs
from lowdim.nn.blocks import evaluating

_TOKENS = 5
_LARGEST = 240.0  # far beyond what soft caps leave as it is


def linear_head(model: nn.Module) -> nn.Linear | None:
    """Return the layer whose output is the model's logits as they are; ``None`` where there is more to them.

    Logits may be capped (Gemma 2), scaled (Cohere, Granite, Falcon-H1) or cut. So the head is made to return numbers
    up to 240, which have to come out unchanged, and on a few tokens the product of the head with its own input has to
    be the logits. A head that is sharded, or of a class of its own, is none of this kind.

    Example:
        >>> linear_head(nn.Linear(2, 2)) is None
        True
    """
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if not isinstance(head, nn.Linear) or isinstance(head.weight, DTensor):
        return None
    inputs = model_inputs(model, Batch(_some_ids(head.out_features)[None]), head.weight.device)
    with evaluating(model), torch.no_grad():
        logits = model(**inputs).logits
        marks = torch.linspace(-_LARGEST, _LARGEST, logits.numel(), device=logits.device)
        marks = marks.view_as(logits).to(head.weight.dtype)
        with _instead(head, lambda _: marks):
            shown = model(**inputs).logits
        with without_head(head):
            hidden = model(**inputs).logits
        if not torch.equal(shown.to(marks.dtype), marks) or hidden.shape[-1] != head.in_features:
            return None
        product = linear(hidden.to(head.weight.dtype), head.weight, head.bias).float()
        near = 4 * torch.finfo(head.weight.dtype).eps * float(product.abs().max())
        return head if torch.allclose(product, logits.float(), rtol=0.0, atol=near) else None


def _some_ids(vocabulary: int) -> Tensor:
    return torch.arange(3, 3 + _TOKENS) % vocabulary


@contextmanager
def without_head(head: nn.Module) -> Iterator[None]:
    """Let a model of a `linear_head` return, in the place of its logits, the hidden states that the head would get."""
    with _instead(head, lambda hidden: hidden):
        yield


@contextmanager
def _instead(head: nn.Module, forward: Any) -> Iterator[None]:
    own = swap(head, {"forward": forward})
    try:
        yield
    finally:
        swap(head, own)

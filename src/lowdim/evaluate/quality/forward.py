"""One way to ask any model for logits, one batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lowdim.data.batch import Batch
from lowdim.data.calibration import check_context
from lowdim.data.tokens import check_vocabulary
from lowdim.models.walk.inputs import model_inputs
from lowdim.nn.blocks import evaluating

Forward = Callable[[Sequence[Batch]], Iterator[Tensor]]
"""Batches in, logits ``[sequences, tokens, vocabulary]`` out, one tensor per batch and in the same order."""


def of_model(model: nn.Module) -> Forward:
    """Wrap a causal language model in memory.

    Logits are yielded in the model's own dtype, and no more than one batch of them exists. The model is in
    eval mode during the walk and gets its own mode back. With padding, the positions of the real tokens count
    from 0, so that padding on the left changes nothing for models with absolute positions either.

    Args:
        model: a Hugging Face causal LM, or a module that maps ``input_ids`` to logits or to an object with
            ``logits``.

    Raises:
        DataError: token ids beyond the embedding, or sequences longer than the model's positions.

    Example:
        >>> class Counter(nn.Module):
        ...     def forward(self, input_ids):
        ...         return nn.functional.one_hot(input_ids + 1, num_classes=4).float()
        >>> [logits.argmax(-1).tolist() for logits in of_model(Counter())([Batch(torch.tensor([[0, 2]]))])]
        [[[1, 3]]]
    """

    def forward(batches: Sequence[Batch]) -> Iterator[Tensor]:
        with evaluating(model):
            for batch in batches:
                _check(model, batch)
                yield _logits(model, batch)

    return forward


def as_forward(model: nn.Module | Forward) -> Forward:
    """Return `of_model` of a module; a `Forward` is returned as it is."""
    return of_model(model) if isinstance(model, nn.Module) else model


def _check(model: nn.Module, batch: Batch) -> None:
    embedding: Any = getattr(model, "get_input_embeddings", lambda: None)()
    if embedding is not None:
        check_vocabulary(batch.input_ids, embedding.weight.shape[0])
    if hasattr(model, "config"):
        check_context(batch.input_ids.shape[1], model.config)


@torch.no_grad()
def _logits(model: nn.Module, batch: Batch) -> Tensor:
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    output = model(**model_inputs(model, batch, device))
    logits: Tensor = getattr(output, "logits", output)
    return logits

"""A network asked for what makes its logits, rather than for the logits of a whole batch."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from typing import Any

from torch import Tensor, nn

from lowdim.models.walk.logits import linear_head, without_head
from lowdim.train.objectives.divergence import Side


class PlainLogitsWarning(UserWarning):
    """A network does more to its logits than one linear layer, so those of a whole batch are held at once."""


class Predictor:
    """A causal language model, and its head where its logits are one linear layer of its last hidden states.

    Args:
        network: one of Transformers, or a module called alike.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network, self._head = network, linear_head(network)

    @property
    def chunked(self) -> bool:
        """Whether the logits of some tokens can be had without those of all."""
        return self._head is not None

    def run(self, called: nn.Module, inputs: Mapping[str, Any], **more: Any) -> Any:
        """Call the network, or what wraps it; ``logits`` are hidden states where it is `chunked`."""
        with nullcontext() if self._head is None else without_head(self._head):
            return called(**inputs, **more)

    def side(self, states: Tensor) -> Side:
        """Return what makes the logits of some tokens' states, as `run` gave them."""
        return Side(states) if self._head is None else Side(states, self._head.weight, self._head.bias)


def warn_of_plain(predictors: Iterable[Predictor]) -> None:
    """Warn of networks whose logits are held whole."""
    plain = sorted({type(each.network).__name__ for each in predictors if not each.chunked})
    if plain:
        warnings.warn(
            f"{' and '.join(plain)} does more to its logits than one linear layer, so that those of a whole batch "
            "are held at once; use smaller batches where memory is short",
            PlainLogitsWarning,
            stacklevel=3,
        )

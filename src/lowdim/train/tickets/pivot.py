"""Dense-pivot co-training: every other step is dense, the others take turns with what is masked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from lowdim.train.objectives.divergence import Side, divergence
from lowdim.train.objectives.rows import NO_LABEL

Answer = Callable[[Any, Any], tuple[Tensor, Tensor]]
"""(network, batch) -> logits ``[n, C]`` and labels int64 ``[n]``, -100 where there is none."""


class Shown:
    """A network that computes with masked weights, called as the network is; gradients are masked alike.

    Args:
        model: whose weights are neither changed nor copied for good.
        masks: bool, by parameter name.

    Example:
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> _ = nn.init.ones_(layer.weight)
        >>> Shown(layer, {"weight": torch.tensor([[True, False]])})(torch.tensor([[2.0, 3.0]])).item()
        2.0
    """

    def __init__(self, model: nn.Module, masks: Mapping[str, Tensor]) -> None:
        named = dict(model.named_parameters())
        self._model, self._weights = model, {name: named[name] * mask for name, mask in masks.items()}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the network."""
        return functional_call(self._model, self._weights, args, kwargs)


def classified(network: Any, batch: Any) -> tuple[Tensor, Tensor]:
    """Answer a batch (inputs, labels) of a classifier."""
    inputs, labels = batch
    return network(inputs), labels


def continued(network: Any, batch: Any) -> tuple[Tensor, Tensor]:
    """Answer token ids ``[B, T]``, or a batch of which they come first, with a causal model of Transformers."""
    ids = batch if isinstance(batch, Tensor) else batch[0]
    logits = network(input_ids=ids[:, :-1]).logits
    return logits.flatten(0, 1).float(), ids[:, 1:].flatten()


class Pivot:
    """The loss of a step, as a `lowdim.train.loop.Loop` takes it.

        even steps:  CE(f(W), y)
        odd steps:   (1 - a) CE(f(m W), y) + a KL(f(W) || f(m W)),   m of each pattern in turn

    f(W), the dense network's answer to the same batch, gets no gradient. The KL is the paper's cross entropy with its
    softmax but for that one's entropy, which has no gradient either.

    Args:
        masks: by pattern, in the order of their turns; none of them makes every step dense.
        distill: a.
        answer: how the network is asked.
    """

    def __init__(self, masks: Mapping[str, Mapping[str, Tensor]], distill: float, answer: Answer) -> None:
        self._masks, self._distill, self._answer, self.step = masks, distill, answer, 0

    def turn(self, step: int) -> str:
        """Return what a step trains: "dense", or the name of a pattern.

        Example:
            >>> pivot = Pivot({"element": {}, "channel": {}, "groups": {}}, 0.5, classified)
            >>> [pivot.turn(step) for step in range(8)]
            ['dense', 'element', 'dense', 'channel', 'dense', 'groups', 'dense', 'element']
        """
        names = list(self._masks)
        return names[step // 2 % len(names)] if names and step % 2 else "dense"

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the loss of the next step."""
        turn = self.turn(self.step)
        self.step += 1
        if turn not in self._masks:
            logits, labels = self._answer(model, batch)
            return cross_entropy(logits, labels, ignore_index=NO_LABEL)
        with torch.no_grad():
            dense = self._answer(model, batch)[0]
        logits, labels = self._answer(Shown(model, self._masks[turn]), batch)
        counted = labels != NO_LABEL
        student, teacher = Side(logits[counted]), Side(dense[counted])
        return divergence(student, teacher, labels[counted], kl=self._distill, ce=1.0 - self._distill)

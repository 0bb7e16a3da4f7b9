"""SNIP: weights whose removal changes the loss the most stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lowdim.core.lazy import torch
from lowdim.core.score import Saliency
from lowdim.train.initial.base import Scored, Start

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class SNIP(Scored):
    """Score |g * w| / sum |g * w|: the connection sensitivity |dL/dm| at m = 1, for a mask m on the weights.

    g is the gradient of the loss summed over the batches, before the absolute value is taken. Batch norm and dropout
    act in the mode the network is in.

    Paper: "SNIP: Single-shot Network Pruning based on Connection Sensitivity", arXiv 1810.02340.

    Example:
        >>> import torch
        >>> net = torch.nn.Linear(2, 1, bias=False)
        >>> with torch.no_grad(): _ = net.weight.copy_(torch.tensor([[1.0, 2.0]]))
        >>> batch = (torch.ones(1, 2), torch.zeros(1, 1))
        >>> start = SNIP().start(net, batch, lambda y, t: ((y - t) ** 2).sum() / 2)
        >>> SNIP().scores(start)["weight"]
        tensor([[0.3333, 0.6667]])
        >>> int(SNIP().masks(net, batch, sparsity=0.5, loss=start.loss, include=["*"])["weight"].sum())
        1
    """

    needs: ClassVar[str] = "batches"

    def scores(self, start: Start) -> dict[str, Tensor]:
        """Return the normalised sensitivities."""
        from lowdim.train.initial.gradients import batches_of, gradients, untouched

        total = {name: torch.zeros_like(w, dtype=torch.float32) for name, w in start.weights.items()}
        with untouched(start.model, start.seed):
            for inputs, targets in batches_of(start):
                for name, gradient in gradients(start, inputs, targets).items():
                    total[name] += gradient
        raw = {name: Saliency().worth(weight.detach(), total[name]) for name, weight in start.weights.items()}
        norm = sum(float(score.sum(dtype=torch.float64)) for score in raw.values())
        return {name: score / norm if norm else score for name, score in raw.items()}

"""Sebra, second stage: what a class has in common beside its cue, learnt by contrast of ranks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from lowdim.core.errors import RecipeError
from lowdim.core.lazy import torch
from lowdim.core.settings import within
from lowdim.train.objectives.base import Drawn, Objective

if TYPE_CHECKING:
    from torch import Tensor, nn


class Seen(NamedTuple):
    """What a network makes of a batch of pairs; n counts the anchors, d the features.

    Attributes:
        anchors: features with a gradient, [n, d].
        positives: features of the positives in evaluation mode, without a gradient, [n, d]; likewise ``negatives``.
        logits: of the positives, with a gradient, [n, classes].
    """

    anchors: Tensor
    positives: Tensor
    negatives: Tensor
    logits: Tensor


@dataclass(frozen=True)
class SebraContrast(Objective):
    """Draws a sample towards less spurious ones of its class, and away from those as spurious as itself.

        l_i = -log( e^{s+_i / T} / sum_j (e^{s+_j / T} + e^{s-_j / T}) ) + weight CE(head(f(x+_i)), y_i)

    s+ and s- are the cosines of an anchor's features with those of its positive and its negative, which a sampler of
    pairs draws by their ranks; these two are computed in evaluation mode and without a gradient. Features are what the
    network's last linear layer, its head, takes. The head learns from positives alone. All three are of one class, so
    that a batch of one class is as good as any.

    Paper: "Sebra: Debiasing through Self-Guided Bias Ranking", ICLR 2025, arXiv 2501.18277: T 0.05 to 0.15, weight 0.5
    to 1.

    Attributes:
        temperature: T.
        weight: of the cross entropy.

    Example:
        >>> anchors = torch.tensor([[1.0, 0.0]])
        >>> float(contrast(anchors, anchors, anchors, 0.15))  # one positive and one negative, alike: log 2
        0.6931...
    """

    needs: ClassVar[frozenset[str]] = frozenset({"ranks", "pairs"})
    usual_sampler: ClassVar[str] = "pairs"

    temperature: float = within(0.15, above=0)
    weight: float = within(0.5, above=0)

    @property
    def passes(self) -> float:
        """Arithmetic beside plain training's: two samples forward and backward, two forward."""
        return 2 + 2 / 3

    def forward(self, net: nn.Module, batch: Drawn) -> Seen:
        """Return features and logits of a batch that comes with positives and negatives.

        Raises:
            RecipeError: the network has no linear layer that could be its head, or nothing below it.
        """
        from lowdim.nn.blocks import evaluating

        positive, negative = batch.partners
        count = len(batch.x)
        with evaluating(net), torch.no_grad():
            fixed, _ = features(net, torch.cat([positive, negative]))
        found, logits = features(net, torch.cat([batch.x, positive]))
        return Seen(found[:count], fixed[:count], fixed[count:], logits[count:])

    def loss(self, outputs: Seen, batch: Drawn) -> Tensor:
        """Return the loss of every anchor, fp32 [anchors]."""
        drawn = contrast(outputs.anchors, outputs.positives, outputs.negatives, self.temperature)
        learnt = torch.nn.functional.cross_entropy(outputs.logits.float(), batch.y, reduction="none")
        return drawn + self.weight * learnt


def contrast(anchors: Tensor, positives: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """Return -log( e^{s+_i / T} / sum_j (e^{s+_j / T} + e^{s-_j / T}) ) of each anchor, fp32 [n].

    Args:
        anchors: features [n, d]; likewise ``positives`` and ``negatives``.
        positives: what an anchor is drawn to.
        negatives: what it is drawn away from.
        temperature: T.
    """
    near, far = (
        torch.nn.functional.cosine_similarity(anchors.float(), other.float(), dim=1) / temperature
        for other in (positives, negatives)
    )
    return torch.cat([near, far]).logsumexp(0) - near


def features(net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return what a network's head takes, [samples, d], and the logits that it makes of it.

    Raises:
        RecipeError: the network has no linear layer that could be its head, or nothing below it.
    """
    from torch import nn

    from lowdim.models.structure.heads import find_head
    from lowdim.nn.csr.linear import CSRLinear

    stored = [(name, module, module.values) for name, module in net.named_modules() if isinstance(module, CSRLinear)]
    weighted = [
        (name, module, module.weight)
        for name, module in net.named_modules()
        if isinstance(getattr(module, "weight", None), nn.Parameter) and module.weight.dim() > 1
    ]
    head = find_head(net, [*stored, *weighted])
    layer = next((module for _, module, weight in weighted if head is not None and weight is head[0]), None)
    if layer is None:
        raise RecipeError(
            f"{type(net).__name__} has no linear head with layers below it, so that there are no features to contrast. "
            "Use a network of two layers or more"
        )
    seen: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    try:
        logits: Tensor = net(x)
    finally:
        handle.remove()
    return seen[-1].flatten(1), logits

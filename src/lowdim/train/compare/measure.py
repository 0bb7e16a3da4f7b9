"""How a classifier is measured: accuracy, loss, calibration, noise, and the examples that all networks find hard."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lowdim.core.random import generator
from lowdim.data.raw import Split
from lowdim.data.select.groups import Groups
from lowdim.evaluate.quality.calibration import calibration_error
from lowdim.nn.blocks import evaluating

NOISE, BATCH = 0.5, 1000


@dataclass(frozen=True)
class Answers:
    """What a network says to some examples: losses, confidences fp32 [examples]; hits bool [examples]."""

    losses: Tensor
    confidences: Tensor
    hits: Tensor

    @property
    def accuracy(self) -> float:
        """Share of examples whose likeliest class is right."""
        return float(self.hits.double().mean())

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats."""
        return float(self.losses.double().mean())


@torch.no_grad()
def answer(net: nn.Module, split: Split) -> Answers:
    """Run a network over examples in evaluation mode; its mode is restored."""
    device = next(net.parameters()).device
    with evaluating(net):
        logits = torch.cat([net(x.to(device)).float().cpu() for x in split.x.split(BATCH)])
    confidences, classes = logits.softmax(1).max(1)
    losses = nn.functional.cross_entropy(logits, split.y, reduction="none")
    return Answers(losses, confidences, classes == split.y)


def noisy(split: Split, seed: int) -> Split:
    """Return examples with Gaussian noise of deviation 0.5, in units of the inputs' own; words are left alone."""
    if not split.x.is_floating_point():
        return split
    return Split(split.x + NOISE * torch.randn(split.x.shape, generator=generator(seed, "measure", "noise")), split.y)


def unlike(split: Split, seed: int) -> Split:
    """Return examples of no class: every feature is taken from an example of its own, drawn for it."""
    features = split.x.flatten(1)
    order = torch.rand(features.shape, generator=generator(seed, "measure", "unlike")).argsort(0)
    return Split(features.gather(0, order).reshape(split.x.shape), split.y)


def auroc(high: Tensor, low: Tensor) -> float:
    """Return how likely one of ``high`` is above one of ``low``, ties counting half.

    Example:
        >>> auroc(torch.tensor([0.9, 0.5]), torch.tensor([0.5, 0.1]))
        0.875
    """
    ordered = low.sort().values
    below, upto = (torch.searchsorted(ordered, high, right=right).double() for right in (False, True))
    return float(((below + upto) / 2).mean() / len(low))


def test(net: nn.Module, split: Split, seed: int) -> tuple[Answers, dict[str, float]]:
    """Measure a finished network once on examples that nothing was chosen on."""
    outcome = answer(net, split)
    found = {
        "accuracy": outcome.accuracy,
        "loss": outcome.loss,
        "calibration_error": calibration_error(outcome.confidences, outcome.hits),
    }
    if split.x.is_floating_point():
        found["noisy_accuracy"] = answer(net, noisy(split, seed)).accuracy
    odd = answer(net, unlike(split, seed)).confidences
    return outcome, found | {"unlike_auroc": auroc(outcome.confidences, odd)}


def by_group(hits: Tensor, groups: Groups) -> dict[str, float]:
    """Return the accuracy of each group that has examples.

    Args:
        hits: bool [examples].
        groups: of the examples.

    Example:
        >>> by_group(torch.tensor([True, False, True]), Groups(torch.tensor([0, 0, 1]), ("a", "b", "c")))
        {'a': 0.5, 'b': 1.0}
    """
    found = {name: hits[groups.index == number] for number, name in enumerate(groups.names)}
    return {name: float(hit.double().mean()) for name, hit in found.items() if len(hit)}


def worst(accuracies: Mapping[str, float]) -> float:
    """Return the accuracy of the group that has the lowest."""
    return min(accuracies.values())


def by_difficulty(losses: Mapping[str, Tensor], hits: Mapping[str, Tensor]) -> dict[str, list[float]]:
    """Return each network's accuracy on the easy, the middle and the hard third of the examples.

    Difficulty is the mean loss over all networks, so that none of them decides what is hard; ties go by position.

    Args:
        losses: fp32 [examples] by network.
        hits: bool [examples] by network.

    Example:
        >>> losses = {"a": torch.tensor([0.0, 1.0, 5.0]), "b": torch.tensor([0.0, 2.0, 4.0])}
        >>> by_difficulty(losses, {"a": torch.tensor([1, 1, 0]).bool()})
        {'a': [1.0, 1.0, 0.0]}
    """
    order = torch.stack([loss.double() for loss in losses.values()]).mean(0).argsort(stable=True)
    thirds = order.tensor_split(3)
    return {name: [float(hit[third].double().mean()) for third in thirds] for name, hit in hits.items()}

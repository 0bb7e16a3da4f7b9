"""Adversarial training: the loss of the worst sample in a small box around each, found by projected gradient ascent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lowdim.core.errors import RecipeError
from lowdim.core.lazy import torch
from lowdim.core.random import generator
from lowdim.core.settings import count, within
from lowdim.train.objectives.base import Drawn, Memory, Objective, Samples

if TYPE_CHECKING:
    from torch import Tensor, nn

_BATCH = 500


@dataclass(frozen=True)
class Adversarial(Objective):
    """The cross entropy where ``steps`` steps of sign ascent end, from a random start in a box about the sample.

        x_{t+1} = clip(x_t + stride sign(grad_x CE(f(x_t), y))) to the box around x and to the range of the data

    The ascent sees the network in evaluation mode, so that it moves no running mean; the optimizer's step does not.
    ``radius`` and ``stride`` are shares of the range of the data's values, 0 to 255 for pictures. A test with
    ``test_steps`` steps of the same stride gives ``robust_accuracy``.

    Paper: "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018, arXiv 1706.06083. "Are Sparse
    Neural Networks Better Hard Sample Learners?", arXiv 2409.09196, trains sparse networks so, with these numbers.

    Args:
        radius: epsilon.
        stride: of a step.
        steps: of the ascent in training.
        test_steps: of the ascent that measures the finished network; 0 measures nothing.

    Example:
        >>> round(Adversarial(steps=10).passes, 2)
        7.67
    """

    radius: float = within(8 / 255, above=0, most=1)
    stride: float = within(2 / 255, above=0, most=1)
    steps: int = count(10)
    test_steps: int = count(20, least=0)

    @property
    def passes(self) -> float:
        """A step of the ascent is a forward pass and half a backward pass, two thirds of a step of training."""
        return 1.0 + self.steps * 2 / 3

    def check_kind(self, kind: str) -> None:
        """Refuse words, which have no directions."""
        if kind == "text":
            raise RecipeError(
                "objective 'adversarial' moves numbers, and samples of this data are words. Choose pictures or a table."
            )

    def begin(self, samples: Samples) -> Memory:
        """Return the range of the data and the seed of the random starts."""
        return {"low": float(samples.x.min()), "high": float(samples.x.max()), "seed": samples.seed, "step": 0}

    def forward(self, net: nn.Module, batch: Drawn) -> Any:
        """Return the outputs at the worst samples found."""
        memory = batch.memory
        memory["step"] += 1
        draw = generator(memory["seed"], "adversarial", memory["step"])
        return net(self.worst(net, batch.x, batch.y, (memory["low"], memory["high"]), self.steps, draw))

    def loss(self, outputs: Any, batch: Drawn) -> Tensor:
        """Return the cross entropy of every sample, in nats."""
        return torch.nn.functional.cross_entropy(outputs, batch.y, reduction="none")

    def worst(
        self, net: nn.Module, x: Tensor, y: Tensor, limits: tuple[float, float], steps: int, draw: torch.Generator
    ) -> Tensor:
        """Return samples in the boxes around ``x`` on which the network's loss is large."""
        from lowdim.nn.blocks import evaluating

        low, high = limits
        radius, stride = self.radius * (high - low), self.stride * (high - low)
        start = torch.rand(x.shape, generator=draw).to(x) * 2 - 1
        moved = (x + radius * start).clamp(low, high)
        with evaluating(net), torch.enable_grad():
            for _ in range(steps):
                moved.requires_grad_()
                loss = torch.nn.functional.cross_entropy(net(moved), y, reduction="sum")
                (slope,) = torch.autograd.grad(loss, moved)  # of the samples alone: weights get no gradient
                moved = (moved.detach() + stride * slope.sign()).clamp(x - radius, x + radius).clamp(low, high)
        return moved

    def examine(self, net: nn.Module, x: Tensor, y: Tensor, seed: int) -> Mapping[str, float]:
        """Return the share of test examples that stay right under ``test_steps`` steps."""
        from lowdim.nn.blocks import evaluating

        if not self.test_steps:
            return {}
        device, limits, right = next(net.parameters()).device, (float(x.min()), float(x.max())), 0
        for number, (part, classes) in enumerate(zip(x.split(_BATCH), y.split(_BATCH), strict=True)):
            draw = generator(seed, "adversarial", "test", number)
            held = part.to(device), classes.to(device)
            moved = self.worst(net, *held, limits, self.test_steps, draw)
            with evaluating(net), torch.no_grad():
                right += int((net(moved).argmax(1) == held[1]).sum())
        return {"robust_accuracy": right / len(y)}

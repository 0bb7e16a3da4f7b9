"""GraSP: weights whose removal would weaken the gradient flow stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lowdim.core.lazy import torch
from lowdim.core.settings import within
from lowdim.train.initial.base import Scored, Start

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class GraSP(Scored):
    """Score w * (H g): to first order, what the squared gradient norm g . g loses, halved, if w is removed.

    g is the gradient of the loss summed over the batches and H its Hessian, both of the outputs divided by a
    temperature. The paper removes the largest -w * (H g), which is the same. H g is the gradient of g0 . g, with g0 = g
    held constant, so the batches are gone through twice; they are held in memory.

    Args:
        temperature: divides the outputs, so that the softmax starts near uniform; the authors use 200.

    Paper: "Picking Winning Tickets Before Training by Preserving Gradient Flow", arXiv 2002.07376.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> masks = GraSP().masks(net, (torch.randn(6, 4), torch.tensor([0, 1] * 3)), sparsity=0.5)
        >>> {name: int(mask.sum()) for name, mask in masks.items()}
        {'0.weight': 16}
    """

    needs: ClassVar[str] = "batches"

    temperature: float = within(200.0, above=0)

    def scores(self, start: Start) -> dict[str, Tensor]:
        """Return w * (H g)."""
        from lowdim.train.initial.gradients import batches_of, differentiable_twice, gradients, untouched

        batches = list(batches_of(start))
        weights = list(start.weights.values())
        constant = [torch.zeros_like(weight) for weight in weights]
        product = [torch.zeros_like(weight, dtype=torch.float32) for weight in weights]
        with untouched(start.model, start.seed), differentiable_twice():
            for inputs, targets in batches:
                found = gradients(start, inputs, targets, self.temperature)
                for total, gradient in zip(constant, found.values(), strict=True):
                    total += gradient
        with untouched(start.model, start.seed), differentiable_twice():
            for inputs, targets in batches:
                found = gradients(start, inputs, targets, self.temperature, twice=True)
                dot = sum((c * g).sum() for c, g in zip(constant, found.values(), strict=True))
                if not isinstance(dot, torch.Tensor) or not dot.requires_grad:  # a loss linear in the weights
                    continue
                second = torch.autograd.grad(dot, weights, allow_unused=True, materialize_grads=True)
                for total, part in zip(product, second, strict=True):
                    total += part
        return {name: weight.detach() * h for (name, weight), h in zip(start.weights.items(), product, strict=True)}

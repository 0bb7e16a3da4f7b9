"""Adam's means of squared gradients: how fast they change, and steps in which they are held."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lowdim.core.errors import LowdimError


class Variance:
    """The means of squared gradients that Adam or AdamW keeps of some weights.

    Args:
        optimizer: of the weights.
        weights: that are looked at.

    Attributes:
        window: steps that a mean of squares remembers, 1 / (1 - beta2).
        eps: what the optimizer adds to the root of a mean.

    Raises:
        LowdimError: it is another optimizer.

    Example:
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> optimizer = torch.optim.AdamW(layer.parameters(), betas=(0.9, 0.75))
        >>> variance = Variance(optimizer, [layer.weight])
        >>> layer(torch.ones(1, 2)).sum().backward()
        >>> variance.note()
        >>> optimizer.step()
        >>> variance.change(), variance.window
        (0.25, 4)
    """

    def __init__(self, optimizer: Optimizer, weights: Iterable[nn.Parameter]) -> None:
        adam = isinstance(optimizer, torch.optim.Adam)  # AdamW is one
        if not adam or optimizer.defaults["amsgrad"] or optimizer.defaults["maximize"]:
            raise LowdimError(
                f"{type(optimizer).__name__} keeps no mean of squared gradients that could be held. Take Adam or AdamW "
                "of torch, without amsgrad and maximize."
            )
        self._optimizer, self._weights = optimizer, list(weights)
        self._before: list[Tensor | None] = []
        self.window = max(1, int(1.0 / (1.0 - optimizer.defaults["betas"][1]) + 1e-6))
        self.eps = float(optimizer.defaults["eps"])

    def _squares(self) -> list[Tensor | None]:
        return [self._optimizer.state[weight].get("exp_avg_sq") for weight in self._weights]

    def note(self) -> None:
        """Remember the means as they are before a step."""
        self._before = [None if mean is None else mean.clone() for mean in self._squares()]

    def change(self) -> float:
        """Return the mean of |v - v before| over all entries, behind the step, and forget what was noted."""
        total, size = 0.0, 0
        for now, before in zip(self._squares(), self._before, strict=True):
            if now is not None:
                total += float((now if before is None else now - before).abs().sum(dtype=torch.float64))
                size += now.numel()
        self._before = []
        return total / max(1, size)

    @torch.no_grad()
    def step(self, since: int | None) -> None:
        """Take Adam's step of the weights with their means of squares as they are, and leave the optimizer no gradient.

        M <- beta1 M + (1 - beta1) G; W <- W - lr (M / (1 - beta1^t) / (sqrt(V / (1 - beta2^since)) + eps)), and the
        group's decay.

        Args:
            since: steps that V is the mean of; None takes V without its correction.
        """
        groups = {p: group for group in self._optimizer.param_groups for p in group["params"]}
        for weight in self._weights:
            if weight.grad is not None:
                self._step(weight, weight.grad, groups[weight], since)

    def _step(self, weight: nn.Parameter, gradient: Tensor, group: dict[str, Any], since: int | None) -> None:
        state, (beta1, beta2) = self._optimizer.state[weight], group["betas"]
        lr, decay = float(group["lr"]), group["weight_decay"]
        if decay and group.get("decoupled_weight_decay"):
            weight.mul_(1.0 - lr * decay)
        elif decay:
            gradient = gradient.add(weight, alpha=decay)
        if "step" not in state:  # no gradient came until now: Adam would take the square of this one
            home = weight.device if group["fused"] or group["capturable"] else "cpu"
            state["step"], state["exp_avg"] = torch.zeros((), device=home), torch.zeros_like(weight)
            state["exp_avg_sq"] = gradient.square() * (1.0 - beta2 ** (since or 1))
        state["step"] += 1
        mean = state["exp_avg"].lerp_(gradient, 1.0 - beta1)
        held = state["exp_avg_sq"] / (1.0 if since is None else 1.0 - beta2**since)
        weight.addcdiv_(mean, held.sqrt_().add_(group["eps"]), value=-lr / (1.0 - beta1 ** float(state["step"])))
        weight.grad = None

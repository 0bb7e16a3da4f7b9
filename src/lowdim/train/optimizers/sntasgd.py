"""SNT-ASGD: plain SGD until validation stalls, then an average of every weight over its own life."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lowdim.core.errors import RecipeError
from lowdim.train.optimizers.base import loss_of


class SNTASGD(Optimizer):
    """Sparse non-monotonically triggered averaged SGD.

    SGD: w <- w - lr (g + weight_decay w). Once ``observe`` has seen the validation loss stall, every weight is also
    averaged over the steps since it became active: a counter s of its own, ax <- w while s <= 2, afterwards
    ax <- ax + (w - ax) / (s - 1). `SparseTraining` clears the counter and the average of a weight that goes off or
    on, so that a regrown weight is not pulled to the zeros of its absence. Without masks it is NT-ASGD. Call
    ``observe`` after each validation and evaluate inside ``averaged``.

    Paper: "Selfish Sparse RNN Training", ICML 2021, arXiv 2101.09048; NT-ASGD is of arXiv 1708.02182.

    Args:
        params: parameters, or groups of them.
        lr: learning rate; the paper's LSTM has 40 with gradients clipped at 0.25.
        weight_decay: L2 penalty, added to the gradient.
        nonmono: checks of the validation loss without improvement after which averaging starts.

    Raises:
        RecipeError: a setting is out of range.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(1))
        >>> optimizer = SNTASGD([weight], lr=1.0, nonmono=1)
        >>> [optimizer.observe(loss) for loss in (3.0, 2.0, 2.5, 2.6)]
        [False, False, False, True]
    """

    def __init__(self, params: Any, lr: float = 1.0, *, weight_decay: float = 0.0, nonmono: int = 5) -> None:
        if not lr > 0 or not weight_decay >= 0:
            raise RecipeError(f"lr must be above 0 and weight_decay at least 0; got {lr!r} and {weight_decay!r}")
        if not isinstance(nonmono, int) or nonmono < 0:
            raise RecipeError(f"nonmono must be a whole number of at least 0; got {nonmono!r}")
        settings = {"lr": lr, "weight_decay": weight_decay, "nonmono": nonmono}
        super().__init__(params, {**settings, "averaging": False, "losses": ()})

    @property
    def averaging(self) -> bool:
        """Whether weights are averaged from here on."""
        return bool(self.param_groups[0]["averaging"])

    def observe(self, loss: float) -> bool:
        """Take note of a validation loss, and start averaging once it stalls; return whether weights are averaged.

        It stalls when there are more than ``nonmono`` earlier losses and the new one is above the lowest of them,
        the latest ``nonmono`` left out.
        """
        group = self.param_groups[0]
        losses, latest = group["losses"], group["nonmono"]
        if len(losses) > latest and loss > min(losses[: len(losses) - latest]):
            self.start()
        for each in self.param_groups:
            each["losses"] = (*losses, float(loss))
        return self.averaging

    def start(self) -> None:
        """Average from the next step on, whatever the validation loss does."""
        for group in self.param_groups:
            group["averaging"] = True

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; returns the loss of the closure, if there is one."""
        loss = loss_of(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                gradient = parameter.grad.add(parameter, alpha=group["weight_decay"])
                parameter.add_(gradient, alpha=-group["lr"])
                if group["averaging"]:
                    self._average(parameter)
        return loss

    def _average(self, parameter: Tensor) -> None:
        state = self.state[parameter]
        if not state:
            state["age"] = torch.zeros_like(parameter, dtype=torch.float32)
            state["ax"] = torch.zeros_like(parameter)
        state["age"].add_(1.0)
        share = (state["age"] - 1.0).clamp_(min=1.0).reciprocal_()
        state["ax"].lerp_(parameter, share.to(parameter.dtype))  # exactly the weight where the share is 1

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Put the averages in the place of the weights, for evaluation; afterwards the weights are back.

        Weights that have no average yet stay.
        """
        found = [(p, s["ax"]) for p, s in self.state.items() if "ax" in s]
        weights = [p.detach().clone() for p, _ in found]
        try:
            with torch.no_grad():
                for parameter, average in found:
                    parameter.copy_(average)
            yield
        finally:
            with torch.no_grad():
                for (parameter, _), weight in zip(found, weights, strict=True):
                    parameter.copy_(weight)

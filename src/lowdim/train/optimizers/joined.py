"""Several optimizers, each with weights of its own, as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.optim import Optimizer

from lowdim.core.errors import LowdimError
from lowdim.train.optimizers.base import loss_of


class Joined(Optimizer):
    """Takes the steps of several optimizers; its groups, state and hooks are those of one.

    Args:
        parts: optimizers that share no weight.

    Example:
        >>> a, b = (torch.nn.Parameter(torch.ones(1)) for _ in range(2))
        >>> both = Joined([torch.optim.SGD([a], lr=1.0), torch.optim.SGD([b], lr=2.0)])
        >>> (a + b).backward()
        >>> both.step()
        >>> a.item(), b.item()
        (0.0, -1.0)
    """

    def __init__(self, parts: Sequence[Optimizer]) -> None:
        self._parts = tuple(parts)
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._share()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Take a group of one of the parts.

        Raises:
            LowdimError: it is of none.
        """
        if len(self.param_groups) == sum(len(part.param_groups) for part in self._parts):
            names = " and ".join(type(part).__name__ for part in self._parts)
            raise LowdimError(f"which of {names} is to train a new group is not known. Build the optimizer again")
        super().add_param_group(param_group)

    def _share(self) -> None:
        """Let the parts see these groups and this state."""
        groups = iter(self.param_groups)
        for part in self._parts:
            part.param_groups = [next(groups) for _ in part.param_groups]
            part.state = self.state

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Let every part take its step; return what the closure returns."""
        loss = loss_of(closure)
        for part in self._parts:
            part.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a ``state_dict``."""
        super().load_state_dict(state_dict)
        self._share()

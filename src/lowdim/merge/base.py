"""What every way of making one network out of several answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lowdim.core.lazy import torch
from lowdim.core.settings import Settings
from lowdim.merge.combine import check, kept_count, pruned, tensorwise, union
from lowdim.models.ticket import Ticket


@dataclass(frozen=True)
class Merger(Settings, ABC):
    """Makes one network out of several of the same structure."""

    @abstractmethod
    def merge(self, states: Sequence[Ticket], base: Ticket | None = None) -> Ticket:
        """Return one network; those given are not changed.

        Its norm statistics are merged like any tensor and mean nothing: write it into a model and call
        ``refresh_norm`` before use.

        Args:
            states: at least one, in the order in which they were made.
            base: the network that they come from, for methods that look at what each has changed.

        Raises:
            LowdimError: the networks do not fit together.
        """


@dataclass(frozen=True)
class Tensorwise(Merger):
    """Merges tensor by tensor; a method is the rule for one tensor.

    Sparse networks of one mask stay sparse by themselves. Where masks differ the result has their union, and the
    largest weights over all layers stay, exactly as many as one network has.

    Example:
        >>> import torch
        >>> class Middle(Tensorwise):
        ...     def mix(self, tensors, base):
        ...         return torch.stack(tensors).median(dim=0).values
        >>> nets = [torch.nn.Linear(1, 1) for _ in range(3)]
        >>> for value, net in enumerate(nets):
        ...     _ = torch.nn.init.constant_(net.weight, value**2)
        >>> float(Middle().merge([Ticket.of(net, {}) for net in nets]).state["weight"])
        1.0
    """

    @abstractmethod
    def mix(self, tensors: Sequence[torch.Tensor], base: torch.Tensor | None) -> torch.Tensor:
        """Return the merged tensor, fp64, for a tensor of each network and of the base, all of one shape."""

    def merge(self, states: Sequence[Ticket], base: Ticket | None = None, *, sparsity: float | None = None) -> Ticket:
        """Return one network of ``sparsity``, by default that of the networks; see `Merger`."""
        keep = kept_count(states, sparsity)
        if base is not None:
            check([*states, replace(base, masks=states[0].masks)])  # which may be dense

        def rule(name: str) -> torch.Tensor:
            return self.mix([each.state[name] for each in states], None if base is None else base.state[name])

        mixed = tensorwise(states, rule)
        return pruned(mixed, union([each.masks for each in states]), keep, states[-1].step)

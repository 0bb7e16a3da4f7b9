"""Running statistics of norms, measured again: combined weights have none of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from lowdim.core.errors import LowdimError
from lowdim.core.lazy import torch
from lowdim.models.ticket import borrowed

Forward = Callable[["torch.nn.Module", Any], Any]


def norms(model: torch.nn.Module) -> list[Any]:
    """Return the modules that keep running statistics of their batches (BatchNorm of any dimension)."""
    kind = torch.nn.modules.batchnorm._BatchNorm
    return [m for m in model.modules() if isinstance(m, kind) and m.running_mean is not None]


def to_device(batch: Any, device: Any) -> Any:
    """Return a batch with its tensors moved."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        return [to_device(value, device) for value in batch]
    return batch


def run(model: torch.nn.Module, batch: Any) -> Any:
    """Call a model with a batch: a tensor, a mapping (as keywords), or a pair of which the first item is the input."""
    parameter = next(model.parameters(), None)
    batch = to_device(batch, parameter.device) if parameter is not None else batch
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(batch[0] if isinstance(batch, (tuple, list)) else batch)


def refresh_norm(model: torch.nn.Module, batches: Iterable[Any], *, forward: Forward | None = None) -> int:
    """Set the running statistics of every BatchNorm to those of the data, in place.

    mean = sum x / n and var = sum (x - mean)^2 / (n - 1) over **all** values of a channel in all batches, so that a
    short last batch weighs as much as its samples are, and the first norm's result does not depend on how the data is
    cut into batches. During the pass norms use the statistics of their batch, as in training; everything else is in
    eval mode, so that dropout draws nothing. Modes are restored; a model without BatchNorm reads no batch.
    Ranks are not combined: give every rank the same batches.

    Args:
        model: changed in its BatchNorm buffers only.
        batches: tensors, mappings (passed as keywords) or tuples (input, ...); moved to the model's device.
        forward: how to call the model with a batch, where that is something else.

    Returns:
        How many norms were refreshed; one that the forward pass does not reach keeps what it has.

    Raises:
        LowdimError: there is no batch, or one holds a single value per channel; nothing has been changed then.

    Example:
        >>> import torch
        >>> model = torch.nn.BatchNorm1d(1)
        >>> refresh_norm(model, [torch.tensor([[1.0], [3.0]]), torch.tensor([[5.0], [7.0]])])
        1
        >>> float(model.running_mean), round(float(model.running_var), 4)
        (4.0, 6.6667)
    """
    found = norms(model)
    if not found:
        return 0
    sums = {module: _Moments() for module in found}
    call = forward or run
    counted = 0
    hooks = [module.register_forward_pre_hook(lambda m, args: sums[m].add(args[0])) for module in found]
    try:
        with torch.no_grad(), borrowed(model):
            model.eval()
            for module in found:
                module.train()
            for batch in batches:
                call(model, batch)
                counted += 1
    finally:
        for hook in hooks:
            hook.remove()
    if not counted:
        raise LowdimError("batches is empty: norm statistics need data. Was it a generator already used up?")
    reached = {module: moments for module, moments in sums.items() if moments.count}
    for module, moments in reached.items():
        moments.write(module, counted)
    return len(reached)


class _Moments:
    """Count, mean and squared deviation per channel, merged batch by batch in fp64 (Chan's update)."""

    def __init__(self) -> None:
        self.count = 0
        self.shift: Any = None
        self.mean: Any = 0.0
        self.squares: Any = 0.0

    def add(self, x: torch.Tensor) -> None:
        dims = [d for d in range(x.ndim) if d != 1]
        count = x.numel() // x.shape[1]
        if count < 2:
            raise LowdimError(
                "a batch holds one value per channel, which BatchNorm cannot normalise; use larger batches, or "
                "drop_last=True"
            )
        values = x.detach() if x.dtype == torch.float64 else x.detach().float()
        if self.shift is None:
            self.shift = values.mean(dims, keepdim=True)
        # fp32 suffices for a batch once the bulk of the mean is off; batches are merged on the CPU, where fp64 exists
        var, mean = (m.cpu().double() for m in torch.var_mean(values - self.shift, dims, correction=0))
        delta = mean - self.mean
        total = self.count + count
        self.squares = self.squares + var * count + delta**2 * (self.count * count / total)
        self.mean = self.mean + delta * (count / total)
        self.count = total

    def write(self, module: Any, batches: int) -> None:
        module.running_mean.copy_(self.mean + self.shift.flatten().cpu().double())
        module.running_var.copy_(self.squares / (self.count - 1))
        if module.num_batches_tracked is not None:
            module.num_batches_tracked.fill_(batches)

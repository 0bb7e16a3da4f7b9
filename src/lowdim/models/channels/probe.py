"""See where channels go, by marking them in a real forward pass.

A marked channel is NaN, which every sum, product and activation hands on. Layers that mix channels are
watched: they note which of their input channels are marked, and go on with clean ones, so that a mark travels
from one mixing layer to the next and no further. Nothing is assumed about the code in between.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lowdim.core.errors import LowdimError
from lowdim.models.channels.kinds import Carrier, Mixer, call, kind_of, tensors

Site = tuple[str, int]  # a layer, and which of its calls in one forward pass
Marks = dict[Site, Tensor]

OUTPUT: Site = ("", 0)


class Probe:
    """Marks channels and tells who sees them.

    Args:
        model: a copy that nobody else uses, in evaluation mode.
        example: what it is called with.

    Raises:
        LowdimError: the model gives NaN by itself, or chooses its layers by the values of activations.
    """

    def __init__(self, model: nn.Module, example: Any) -> None:
        self.model, self._example = model, example
        self.kinds = {name: kind for name, m in model.named_modules() if (kind := kind_of(m)) is not None}
        self._seen: Marks = {}
        self._calls: dict[str, int] = {}
        self.clean = self._run({})
        if any(bool(seen.any()) for seen in self.clean.values()):
            raise LowdimError("the model gives NaN on the example, so that no channel can be followed through it")

    def channels(self, name: str) -> int:
        """Return how many output channels a mixer has."""
        module, kind = self.model.get_submodule(name), self.kinds[name]
        assert isinstance(kind, Mixer) and isinstance(module.weight, Tensor)
        return module.weight.shape[kind.outputs]

    def mark(self, channels: Mapping[str, Tensor]) -> Marks:
        """Mark output channels of mixers, bool [channels] by name; return the marked inputs of every layer."""
        return self._same_way(self._run(channels))

    def mark_own(self, name: str) -> Marks:
        """Mark all that a layer of an unknown kind holds itself, parameters and buffers."""
        module = self.model.get_submodule(name)
        with torch.no_grad(), _restored(own_tensors(module)) as held:
            for tensor in held:
                tensor.fill_(torch.nan)
            return self._same_way(self._run({}))

    def _same_way(self, seen: Marks) -> Marks:
        if set(seen) != set(self.clean):
            raise LowdimError(
                "the model calls other layers when activations are NaN, so that channels cannot be followed through it"
            )
        return seen

    def _run(self, channels: Mapping[str, Tensor]) -> Marks:
        self._seen, self._calls = {}, {}
        with ExitStack() as stack:
            for name, kind in self.kinds.items():
                module = self.model.get_submodule(name)
                before = module.register_forward_pre_hook(self._reader(name, kind), with_kwargs=True)
                stack.callback(before.remove)
                if name in channels:
                    assert isinstance(kind, Mixer)
                    stack.callback(module.register_forward_hook(_marker(kind, channels[name])).remove)
            output = call(self.model, self._example)
        marked = [bool(t.isnan().any()) for t in tensors(output) if t.is_floating_point()]
        self._seen[OUTPUT] = torch.tensor([any(marked)])
        return self._seen

    def _reader(self, name: str, kind: Mixer | Carrier) -> Any:
        def read(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            x = args[0] if args else kwargs["input"]
            marked = x.isnan()
            number = self._calls.get(name, 0)
            self._calls[name] = number + 1
            self._seen[name, number] = _last(marked, kind.feature).any(0).cpu()
            if isinstance(kind, Carrier):
                return None
            x = x.masked_fill(marked, 0.0)
            return ((x, *args[1:]), kwargs) if args else (args, {**kwargs, "input": x})

        return read


def _last(x: Tensor, axis: int) -> Tensor:
    """Return [the rest, size of an axis]."""
    return x.movedim(axis, -1).reshape(-1, x.shape[axis])


def _marker(kind: Mixer, channels: Tensor) -> Any:
    def mark(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        where = channels.to(output.device).reshape(-1, *[1] * (-kind.feature - 1))
        return output.masked_fill(where, torch.nan)

    return mark


def own_tensors(module: nn.Module) -> list[Tensor]:
    """Return the floating-point parameters and buffers that a layer holds itself, not in its parts."""
    own = [*module._parameters.values(), *module._buffers.values()]
    return [t for t in own if t is not None and t.is_floating_point() and t.numel() > 1]


@contextmanager
def _restored(held: Sequence[Tensor]) -> Iterator[Sequence[Tensor]]:
    saved = [t.clone() for t in held]
    try:
        yield held
    finally:
        for tensor, old in zip(held, saved, strict=True):
            tensor.copy_(old)


def codes(probe: Probe, names: Sequence[str]) -> dict[Site, Tensor]:
    """Tell for every input channel of every layer which output channel it is.

    All channels are numbered through, in the order of ``names``. For each binary digit of the numbers two
    passes mark the channels whose digit is 1, and those whose digit is 0: an input that sees one channel alone is
    marked in exactly one of the two, always.

    Returns:
        int64 [input channels] per layer and call: the number of the channel; -1 where none is seen, -2 where
        several are mixed.
    """
    sizes = [probe.channels(name) for name in names]
    numbers = torch.arange(sum(sizes))
    found = {site: torch.zeros(len(seen), dtype=torch.int64) for site, seen in probe.clean.items()}
    mixed = {site: torch.zeros(len(seen), dtype=torch.bool) for site, seen in probe.clean.items()}
    none = {site: torch.ones(len(seen), dtype=torch.bool) for site, seen in probe.clean.items()}
    for digit in range(max(1, (len(numbers) - 1).bit_length())):
        ones = (numbers >> digit) & 1 == 1
        high = probe.mark(dict(zip(names, ones.split(sizes), strict=True)))
        low = probe.mark(dict(zip(names, (~ones).split(sizes), strict=True)))
        for site, number in found.items():
            number += high[site].long() << digit
            mixed[site] |= high[site] & low[site]
            none[site] &= ~(high[site] | low[site])
    for site, number in found.items():
        number[none[site]] = -1
        number[mixed[site]] = -2
    return found

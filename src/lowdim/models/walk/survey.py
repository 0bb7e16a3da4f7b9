"""What a model does with its blocks, learnt from a run of a few tokens before any weight is read.

Walking block by block gives a model's own numbers only if the model hands the hidden states from one block to the next
as they are and makes nothing else of them, calls each block once and in turn, and keeps no state between calls.
`survey` finds out, or refuses.
Parameters without memory get a few numbers, stretched to their shapes: what a model does with its blocks does not
depend on them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from lowdim.core.errors import LowdimError
from lowdim.data.batch import Batch
from lowdim.models.walk.calls import Activation, Call, Own, Returned, StopForward, Wire, stubbed, swap
from lowdim.models.walk.inputs import model_inputs

TOKENS = 7
_APART = 8
_PRODUCTS = {linear, torch.matmul, torch.bmm, torch.mm, Tensor.matmul, Tensor.bmm, Tensor.mm, Tensor.__matmul__}
_BIASED = {torch.addmm, Tensor.addmm}
_CHOICES = {torch.topk, torch.sort, torch.argsort, Tensor.topk, Tensor.sort, Tensor.argsort}


@dataclass
class Manners:
    """How a model treats its blocks.

    Attributes:
        returned: per block, how it returns its hidden states.
        padding: whether padding leaves the hidden states of real tokens, and the inputs of layers, as they are without.
        hands_on: whether a block gives a later one anything but hidden states.
    """

    returned: list[Returned]
    padding: bool = True
    hands_on: bool = False


def survey(model: PreTrainedModel, blocks: nn.ModuleList, device: Any) -> Manners:
    """Run a model on a few tokens, the first block of each make for real, and return how it treats its blocks.

    Args:
        model: in evaluation mode; its parameters may be on the meta device.
        blocks: its blocks.
        device: where to run.

    Raises:
        LowdimError: the model cannot be walked block by block; the message says why.
    """
    if next(model.parameters()).is_meta:
        model.tie_weights()  # what is built without memory is not
    _refuse_shared(blocks)
    look = _Look(model, blocks, device)
    embedding: Any = model.get_input_embeddings()
    ids = torch.arange(3, 3 + TOKENS) % embedding.weight.shape[0]
    with _stretched(model, device), torch.no_grad():
        try:
            part, whole = (look.run(Batch(x[None]))[0] for x in (ids[2:], ids))
            look.check_given(Batch(ids[None]), whole)
        except LowdimError:
            raise
        except Exception as error:
            raise LowdimError(
                _cannot(model, f"a run of {TOKENS} tokens ends in {type(error).__name__}: {error}")
            ) from error
        look.manners.padding = look.same_when_padded(ids, whole, part)
    return look.manners


def _cannot(model: nn.Module, why: str) -> str:
    return f"{type(model).__name__} cannot be walked block by block: {why}."


def _refuse_shared(blocks: nn.ModuleList) -> None:
    owner: dict[nn.Parameter, tuple[int, str]] = {}
    inside = ((index, name, module) for index, block in enumerate(blocks) for name, module in block.named_modules())
    for index, prefix, module in inside:
        for own, parameter in module.named_parameters(recurse=False):
            first, other = owner.setdefault(parameter, (index, prefix))
            if (first, other) != (index, prefix):
                who = f"blocks {first} and {index}" if first != index else f"{other} and {prefix} in block {index}"
                name = f"{prefix}.{own}".lstrip(".")
                raise LowdimError(
                    f"{who} share the weight {name!r}. A weight that is used more "
                    "than once has no one input to be judged by; lowdim prunes models whose blocks share none."
                )


@contextmanager
def _stretched(model: nn.Module, device: Any) -> Iterator[None]:
    """Give parameters on the meta device fp32 numbers for a ``with``, in memory for a row and a column; buffers too."""
    generator = torch.Generator().manual_seed(0)
    empty = [(m, n, p) for m in model.modules() for n, p in m._parameters.items() if p is not None and p.is_meta]
    made: dict[int, nn.Parameter] = {}
    own: list[tuple[nn.Module, str, Tensor]] = []
    try:
        for module, name, parameter in empty:
            module._parameters[name] = made.setdefault(id(parameter), _numbers(parameter, generator, device))
        for module in model.modules():
            for name, buffer in list(module.named_buffers(recurse=False)):
                module._buffers[name] = buffer = buffer.to(device)
                if empty and buffer.is_floating_point():
                    own.append((module, name, buffer))
                    module._buffers[name] = buffer.float()
        yield
    finally:
        for module, name, buffer in own:
            module._buffers[name] = buffer
        for module, name, parameter in empty:
            module._parameters[name] = parameter


def _numbers(parameter: Tensor, generator: torch.Generator, device: Any) -> nn.Parameter:
    shape = parameter.shape
    drawn = torch.randn(max(1, sum(shape)), generator=generator)
    drawn = drawn / math.sqrt(max(1, shape[-1])) if len(shape) > 1 else 1 + 0.1 * drawn
    stretched = drawn.to(device).as_strided(shape, (1,) * len(shape))
    return nn.Parameter(stretched, requires_grad=False)


@dataclass
class _Look:
    """The runs of a survey, and what they have shown."""

    model: PreTrainedModel
    blocks: nn.ModuleList
    device: Any
    manners: Manners = field(init=False)
    short: _Short = field(init=False)
    version: int = 0
    calls: list[Call] = field(default_factory=list)
    own: list[Own] = field(default_factory=list)
    end: Tensor | None = None

    def __post_init__(self) -> None:
        makes = [repr(block) for block in self.blocks]
        self.first = [makes.index(make) for make in makes]
        self.manners = Manners([Returned() for _ in makes])
        self.short = _Short()

    def run(self, batch: Batch) -> tuple[Tensor, bool]:
        """Return the hidden states that leave the last block, and whether layers' inputs were those of the tokens."""
        state = Activation(batch, torch.empty(0), [])
        told = [True]

        def stub(index: int, hidden: Tensor, call: Call) -> Tensor:
            self._check_turn(index, hidden, state)
            state.hidden = hidden
            state.calls.append(call)
            self.manners.hands_on |= any(isinstance(value, Wire) for value in _given(call))
            earlier = {id(mapping) for other in state.calls[:-1] for mapping in _mappings(other)}
            shared = any(id(mapping) in earlier for mapping in _mappings(call))
            if self.first[index] == index or shared:  # what blocks share, each has to write
                told[0] &= self._for_real(index, state)
            for place in self.manners.returned[index].handed:
                like = state.carried.get(Wire(self.first[index], place))  # a block that did not run hands on the same
                state.carried.setdefault(Wire(index, place), like)
            self.version = state.hidden._version
            return state.hidden

        stubs = stubbed(self.blocks, stub, self.manners.returned)
        with stubs as self.own, self._without_head(), self.short, suppress(StopForward):
            self.model(**model_inputs(self.model, batch, self.device))
        if len(state.calls) < len(self.blocks):
            raise LowdimError(_cannot(self.model, f"its forward ends before block {len(state.calls)}"))
        self.calls = state.calls
        return state.hidden, told[0]

    def check_given(self, batch: Batch, last: Tensor) -> None:
        """Refuse a model that gives blocks, or the head, what it makes of the hidden states of earlier blocks.

        The arguments of blocks are captured while none does anything, and must be those of the last `run`.
        """
        calls, end, idle = self.calls, self.end, list[Call]()

        def stub(index: int, hidden: Tensor, call: Call) -> Tensor:
            idle.append(call)
            return last if index == len(self.blocks) - 1 else hidden

        stubs = stubbed(self.blocks, stub, self.manners.returned)
        with stubs, self._without_head(), self.short, suppress(StopForward):
            self.model(**model_inputs(self.model, batch, self.device))
        for index, (call, other) in enumerate(zip(calls, idle, strict=True)):
            if not all(map(_same, _given(call), _given(other))):
                why = f"what it gives block {index} beside the hidden states depends on those of earlier blocks"
                raise LowdimError(_cannot(self.model, why))
        if not _same(end, self.end):
            raise LowdimError(_cannot(self.model, "its head is given more than what the last block returns"))

    @contextmanager
    def _without_head(self) -> Iterator[None]:
        """Stop before the head, which is large and does not matter here."""

        def stop(module: nn.Module, args: Any) -> None:
            self.end = args[0] if args else None
            raise StopForward

        head = self.model.get_output_embeddings()
        hook = None if head is None else head.register_forward_pre_hook(stop)
        try:
            yield
        finally:
            if hook is not None:
                hook.remove()

    def _check_turn(self, index: int, hidden: Tensor, state: Activation) -> None:
        if index < len(state.calls):
            raise LowdimError(_cannot(self.model, f"it calls block {index} more than once"))
        if index > len(state.calls):
            raise LowdimError(_cannot(self.model, f"it calls block {index} where block {len(state.calls)} was due"))
        untouched = hidden._version == self.version if hidden is state.hidden else torch.equal(hidden, state.hidden)
        if index and not untouched:
            why = f"it changes the hidden states between blocks {index - 1} and {index}"
            raise LowdimError(_cannot(self.model, why))

    def _for_real(self, index: int, state: Activation) -> bool:
        """Run a block twice, and keep the second; whether its layers' inputs were those of the batch's tokens."""
        shared = _mappings(state.calls[index])
        before, told = [set(mapping) for mapping in shared], list[bool]()
        block, note = self.blocks[index], _noting(told, state.batch.input_ids.numel())
        with self._unstubbed(index), ExitStack() as hooks:
            for layer in filter(_multiplies, block.modules()):
                hooks.callback(layer.register_forward_pre_hook(note).remove)
            once, out = state.run(block, index, keep=False), state.run(block, index, keep=True)
        returned = Returned.of(out, state.hidden)
        if not torch.equal(returned.hidden(once).nan_to_num(), returned.hidden(out).nan_to_num()):
            raise LowdimError(_cannot(self.model, f"block {index} gives other numbers when it runs again on one input"))
        for place, first in enumerate(self.first):
            if first == index:
                self.manners.returned[place] = returned
        self.manners.hands_on |= before != [set(mapping) for mapping in shared]
        state.carried |= {Wire(index, place): out[place] for place in returned.handed}
        state.hidden = returned.hidden(out)
        return all(told)

    @contextmanager
    def _unstubbed(self, index: int) -> Iterator[None]:
        stub = swap(self.blocks[index], self.own[index])
        try:
            yield
        finally:
            swap(self.blocks[index], stub)

    def same_when_padded(self, ids: Tensor, whole: Tensor, part: Tensor) -> bool:
        """Whether sequences padded on the left and on the right give what they give alone."""
        mask = torch.ones(3, TOKENS, dtype=torch.int64)
        mask[1, :2], mask[2, -2:] = 0, 0
        rows = torch.stack([ids, ids, ids[2:].repeat(2)[:TOKENS]])
        try:
            hidden, told = self.run(Batch(rows, mask))
        except Exception:  # whatever a model says against padding, it runs without
            return False
        if not told or self.short.chosen or hidden.shape[:2] != mask.shape:
            return False
        pairs = ((hidden[0], whole[0]), (hidden[1, 2:], part[0]), (hidden[2, :-2], part[0]))
        return all(torch.allclose(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().max())) for a, b in pairs)


class _Short(TorchFunctionMode):
    """Multiplies by stretched weights in short; notes whether the best of all positions are chosen.

    Padding changes which of equally good positions are chosen. A short product looks at all of its inputs, but takes
    only a few of them apart.
    """

    chosen = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is scaled_dot_product_attention:  # whose kernels misread weights that overlap in memory
            args = tuple(map(_apart, args))
        if func in _CHOICES and args and args[0].dim() and args[0].shape[-1] == TOKENS:
            self.chosen = True
        at = 2 if func in _BIASED else 1
        if func in _PRODUCTS | _BIASED and len(args) > at and _is_stretched(args[at]):
            turned = func is linear
            x, weight = args[at - 1], args[at].mT if turned else args[at]
            x, weight = x[..., :_APART] + x @ weight[..., :1], weight[..., :_APART, :]
            args = (*args[: at - 1], x, weight.mT if turned else weight, *args[at + 1 :])
        return func(*args, **(kwargs or {}))


def _apart(value: Any) -> Any:
    return value.contiguous() if isinstance(value, Tensor) else value


def _is_stretched(weight: Any) -> bool:
    return isinstance(weight, Tensor) and weight.dim() > 1 and set(weight.stride()) == {1}


def _given(call: Call) -> list[Any]:
    return [*call[0], *call[1].values()]


def _same(value: Any, other: Any) -> bool:
    """Tell whether two arguments hold the same tensors; other things are no numbers."""
    if isinstance(value, Tensor) and isinstance(other, Tensor):
        return value.shape == other.shape and torch.equal(value.nan_to_num(), other.nan_to_num())
    if isinstance(value, tuple | list) and isinstance(other, tuple | list):
        return len(value) == len(other) and all(map(_same, value, other))
    return isinstance(value, Tensor) == isinstance(other, Tensor)


def _mappings(call: Call) -> list[MutableMapping[Any, Any]]:
    return [value for value in _given(call) if isinstance(value, MutableMapping)]


def _multiplies(module: nn.Module) -> bool:
    """Tell whether a module may multiply each token by a matrix of its own, or by those of experts."""
    if isinstance(module, (nn.Embedding, nn.Conv1d, nn.Conv2d)):
        return False
    return any(p.dim() > 1 and p.is_floating_point() for p in module.parameters(recurse=False))


def _noting(told: list[bool], tokens: int) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def note(module: nn.Module, args: tuple[Any, ...]) -> None:
        told.append(bool(args) and isinstance(args[0], Tensor) and args[0].shape[:-1].numel() == tokens)

    return note

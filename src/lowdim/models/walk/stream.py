"""A causal LM walked block by block: one block's weights resident, the hidden states of all samples carried along.

Nothing is traced and no architecture is named. The model itself runs over every batch with its blocks' ``forward``
replaced, which yields the hidden states that enter the first block *and* each block's own arguments (masks, rotary
embeddings; Gemma-3 gives its blocks different ones). The same trick runs the final norm and the head.

Legend: B batch, T tokens, D hidden width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lowdim.core.errors import NumericalError
from lowdim.data.batch import Batch
from lowdim.models.walk import experts
from lowdim.models.walk.blocks import evaluating, find_blocks
from lowdim.models.walk.inputs import model_inputs
from lowdim.models.walk.layers import Layer, find_layers
from lowdim.models.walk.skeleton import Reader, Skeleton, masters, saved_names, unload
from lowdim.models.walk.units import saved_together

Call = tuple[tuple[Any, ...], dict[str, Any]]


class StopForward(Exception):
    """Raised from inside a forward when the rest of it is not needed."""


@dataclass
class Activation:
    """The state of one batch between two blocks.

    Attributes:
        batch: the tokens.
        hidden: hidden states ``[B, T, D]`` that enter the next block.
        calls: per block, the further positional and keyword arguments that the model gives it.
    """

    batch: Batch
    hidden: Tensor
    calls: list[Call]

    @property
    def mask(self) -> Tensor | None:
        """Bool ``[B, T]``, True = a real token; ``None`` if the batch has no padding."""
        return None if self.batch.attention_mask is None else self.batch.attention_mask.bool()


@dataclass
class Block:
    """A decoder block with real weights.

    Attributes:
        index: position among the blocks.
        name: dotted name in the model.
        module: computes in the stream's compute dtype.
        layers: the prunable layers, masters in the checkpoint's dtype.
        skipped: ``(full name, reason)`` of what holds a matrix but is not prunable.
        masters: every parameter as in the checkpoint, by its name within the block.
    """

    index: int
    name: str
    module: nn.Module
    layers: list[Layer]
    skipped: list[tuple[str, str]]
    masters: dict[str, Tensor]
    _experts: list[experts.ExpertList]

    @property
    def routed(self) -> bool:
        """Whether the block holds experts, so that which layers run depends on the tokens."""
        return bool(self._experts) or any("experts" in layer.name for layer in self.layers)

    def is_expert(self, layer: str) -> bool:
        """Whether a layer is one of the opened experts, which see no padding."""
        inner = {id(child) for module in self._experts for child in module.modules()}
        return any(held.name == layer and id(held.module) in inner for held in self.layers)

    def forward(self, activation: Activation) -> Tensor:
        """Return the hidden states ``[B, T, D]`` that the block makes of an activation."""
        args, kwargs = activation.calls[self.index]
        mask = activation.mask
        for module in self._experts:
            module.token_mask = None if mask is None else mask.reshape(-1)
        out = self.module(activation.hidden, *args, **kwargs)
        hidden: Tensor = out[0] if isinstance(out, tuple) else out
        return hidden

    def advance(self, activation: Activation) -> None:
        """Replace an activation's hidden states by the block's output.

        Raises:
            NumericalError: a real token's hidden state became NaN or Inf.
        """
        hidden = self.forward(activation)
        real = hidden if activation.mask is None else hidden[activation.mask]
        if not bool(torch.isfinite(real.sum(dtype=torch.float32))):  # one pass; NaN and Inf survive a sum
            raise NumericalError(
                f"block {self.name!r} produced NaN or Inf. Try compute='float32'; if the dense model already does "
                "this, its weights are damaged."
            )
        activation.hidden = hidden


def compute_dtype(requested: str, stored: torch.dtype, device: torch.device) -> torch.dtype:
    """Return the dtype of the forwards: bf16 where the machine multiplies it natively, else fp32 on a CPU."""
    if requested != "auto":
        dtype = getattr(torch, requested)
        assert isinstance(dtype, torch.dtype)
        return dtype
    if device.type != "cpu":
        return stored
    return torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32


class Stream:
    """Blocks of a causal LM, one at a time.

    Args:
        model: a complete model in memory, or an empty one (`skeleton.empty_model`) together with ``reader``.
        reader: the checkpoint that fills an empty model block by block.
        stored: dtype of the master weights; ``None`` leaves each its own.
        compute: dtype of the forwards; ``None`` for a model in memory.
        device: where blocks and hidden states live.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        reader: Reader | None = None,
        *,
        stored: torch.dtype | None = None,
        compute: torch.dtype | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.model = model
        self.reader = reader
        self.blocks_name, self.blocks = find_blocks(model)
        self.device = torch.device(device) if reader is not None else next(model.parameters()).device
        self.compute = compute
        self.skeleton = None if reader is None else Skeleton(model, reader, stored)
        self._together = saved_together(model) if reader is None else {}  # before experts are opened
        self._returns_tuple: bool | None = None

    def __len__(self) -> int:
        return len(self.blocks)

    def numel(self) -> int:
        """Return the number of the model's weights, those that are tied counted once."""
        if self.skeleton is not None:
            self.model.tie_weights()  # parameters that come and go are tied while they are in use alone
        return sum(parameter.numel() for parameter in self.model.parameters())

    def block_name(self, index: int) -> str:
        """Return a block's dotted name, e.g. ``model.layers.3``."""
        return f"{self.blocks_name}.{index}"

    def outer_names(self) -> list[str]:
        """Return the names on disk of all that lies in none of the blocks, what the model does not know included."""
        assert self.skeleton is not None
        inside = tuple(f"{self.block_name(index)}." for index in range(len(self)))
        return [n for n in self.skeleton.disk_names("") if not self.skeleton.parameter_of(n).startswith(inside)]

    def named_on_disk(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return parameters under the names, and in the shapes, that a checkpoint has for them; see `stored_with`."""
        return saved_names(self.model, parameters) if self.skeleton is None else self.skeleton.to_disk(parameters)

    def stored_with(self, parameter: str) -> list[str]:
        """Return the parameters that share tensors on disk with this one, itself included."""
        if self.skeleton is not None:
            return self.skeleton.stored_with(parameter)
        return self._together[parameter]

    @contextmanager
    def block(self, index: int, reader: Reader | None = None) -> Iterator[Block]:
        """Give a block real weights for the time of a ``with``; ``reader`` overrides where they are read from."""
        module, name = self.blocks[index], self.block_name(index)
        with ExitStack() as stack:
            if self.skeleton is not None:
                source = reader or self.reader
                assert source is not None and self.compute is not None
                self.skeleton.fill(source, self.skeleton.disk_names(f"{name}."))
                stack.callback(unload, module, {n: p.dtype for n, p in module.named_parameters()})
                held = masters(module, self.compute, self.device)
                module.to(self.device)
            else:
                held = {n: p.data for n, p in module.named_parameters()}
            opened = stack.enter_context(experts.opened(module))
            stack.enter_context(evaluating(module))
            layers, skipped = self._layers(index, held)
            yield Block(index, name, module, layers, skipped, held, opened)

    def _layers(self, index: int, held: dict[str, Tensor]) -> tuple[list[Layer], list[tuple[str, str]]]:
        prefix = self.block_name(index)
        found, skipped = find_layers(self.blocks[index])
        layers = []
        for name, module in found:
            parameter = f"{name}.weight"
            master = held.get(parameter)
            if master is None:  # one expert's slice of a 3-D parameter
                owner, expert, part = name.rsplit(".", 2)
                parameter = f"{owner}.{part}"
                master = held[parameter][int(expert)]
            layers.append(Layer(f"{prefix}.{name}", module, f"{prefix}.{parameter}", master))
        return layers, [(f"{prefix}.{name}", reason) for name, reason in skipped]

    def describe(self, index: int) -> tuple[list[Layer], list[tuple[str, str]]]:
        """Return a block's layers and what it skips from shapes alone; the weights may be on the meta device."""
        module = self.blocks[index]
        held = dict[str, Tensor](module.named_parameters())
        with experts.opened(module):
            return self._layers(index, held)

    @contextmanager
    def _outer(self) -> Iterator[None]:
        """Give embeddings, final norm and head real weights."""
        if self.skeleton is None:
            yield
            return
        assert self.reader is not None and self.compute is not None
        self.skeleton.fill(self.reader, self.outer_names())
        self.model.tie_weights()
        outside = [m for n, m in self.model.named_modules() if not n.startswith(self.blocks_name)]
        for module in outside:
            for name, parameter in list(module.named_parameters(recurse=False)):
                if parameter.dtype != self.compute or parameter.device != self.device:
                    moved = parameter.data.to(self.device, self.compute)
                    setattr(module, name, nn.Parameter(moved, requires_grad=False))
            for name, buffer in list(module.named_buffers(recurse=False)):
                module._buffers[name] = buffer.to(self.device)
        self.model.tie_weights()
        try:
            yield
        finally:
            for module in outside:
                if not any(child is self.blocks for child in module.modules()):
                    unload(module)

    @contextmanager
    def _stubbed(self, stub: Callable[[int, Tensor, Call], Tensor]) -> Iterator[None]:
        """Replace every block's forward by ``stub(index, hidden, (args, kwargs))``."""

        def forward(index: int) -> Callable[..., Any]:
            def run(*args: Any, **kwargs: Any) -> Any:
                hidden, rest = (args[0], args[1:]) if args else (kwargs.pop("hidden_states"), ())
                out = stub(index, hidden, (rest, kwargs))
                return (out,) if self._returns_tuple else out

            return run

        try:
            for index, module in enumerate(self.blocks):
                module.__dict__["forward"] = forward(index)
            yield
        finally:
            for module in self.blocks:
                module.__dict__.pop("forward", None)

    def _call(self, batch: Batch) -> Any:
        return self.model(**model_inputs(self.model, batch, self.device))

    @torch.no_grad()
    def _probe_return(self, batch: Batch) -> None:
        """Learn from one real call whether a block returns a tensor or a tuple."""
        if self._returns_tuple is not None:
            return

        def note(module: nn.Module, args: Any, out: Any) -> None:
            self._returns_tuple = isinstance(out, tuple)
            raise StopForward

        tiny = Batch(batch.input_ids[:1, :2], None)
        with self.block(0) as block:
            hook = block.module.register_forward_hook(note)
            try:
                self._call(tiny)
            except StopForward:
                pass
            finally:
                hook.remove()

    @torch.no_grad()
    def capture(self, batches: Sequence[Batch]) -> list[Activation]:
        """Return, per batch, the hidden states entering block 0 and the arguments of every block."""
        captured: list[Activation] = []
        with self._outer(), evaluating(self.model):
            if batches:
                self._probe_return(batches[0])
            for batch in batches:
                first: list[Tensor] = []
                calls: list[Call] = []

                def record(
                    index: int,
                    hidden: Tensor,
                    call: Call,
                    first: list[Tensor] = first,
                    calls: list[Call] = calls,
                ) -> Tensor:
                    if not first:
                        first.append(hidden)
                    calls.append(call)
                    if index == len(self) - 1:
                        raise StopForward
                    return hidden

                with self._stubbed(record):
                    try:
                        self._call(batch)
                    except StopForward:
                        pass
                captured.append(Activation(batch, first[0], calls))
        return captured

    def logits(self, activations: Sequence[Activation]) -> Iterator[Tensor]:
        """Yield, per activation that has passed the last block, the logits ``[B, T, vocabulary]``."""
        with self._outer(), evaluating(self.model):
            for activation in activations:

                def replay(index: int, hidden: Tensor, call: Call, last: Tensor = activation.hidden) -> Tensor:
                    return last if index == len(self) - 1 else hidden

                with self._stubbed(replay):
                    out = self._call(activation.batch).logits
                yield out

    @torch.no_grad()
    def forward(self, batches: Sequence[Batch]) -> Iterator[Tensor]:
        """Yield the logits of every batch, streaming through the blocks once."""
        activations = self.capture(batches)
        for index in range(len(self)):
            with self.block(index) as block:
                for activation in activations:
                    block.advance(activation)
        yield from self.logits(activations)

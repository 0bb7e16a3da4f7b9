"""A causal LM walked block by block: one block's weights resident, the hidden states of all samples carried along.

Nothing is traced and no architecture is named. The model itself runs over every batch with its blocks' ``forward``
replaced, which yields the hidden states that enter the first block *and* each block's own arguments (masks, rotary
embeddings; Gemma-3 gives its blocks different ones). The same trick runs the final norm and the head.

Legend: B batch, T tokens, D hidden width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lowdim.core.errors import NumericalError
from lowdim.core.progress import Progress
from lowdim.data.batch import Batch
from lowdim.models.structure.layers import Layer, find_layers
from lowdim.models.walk.attention import adopted
from lowdim.models.walk.calls import Activation, Call, Returned, StopForward, stubbed
from lowdim.models.walk.inputs import joined, model_inputs, unpadded
from lowdim.models.walk.opening import OpenExperts, opened
from lowdim.models.walk.skeleton import Reader, Skeleton, in_fp32, masters, saved_names, unload
from lowdim.models.walk.survey import Manners, survey
from lowdim.models.walk.units import saved_together
from lowdim.nn.blocks import evaluating, find_blocks

Walk = Callable[[Sequence[Batch], Callable[[], None]], Iterator[Tensor]]
"""What `Stream.forward` is to those who want to know how far it is."""


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
        returned: how the module returns its hidden states.
    """

    index: int
    name: str
    module: nn.Module
    layers: list[Layer]
    skipped: list[tuple[str, str]]
    masters: dict[str, Tensor]
    _experts: list[OpenExperts]
    returned: Returned = Returned()  # noqa: RUF009 - it cannot change

    @property
    def routed(self) -> bool:
        """Whether the block holds experts, so that which layers run depends on the tokens."""
        return bool(self._experts) or any("experts" in layer.name for layer in self.layers)

    def is_expert(self, layer: str) -> bool:
        """Whether a layer is one of the opened experts, and is told of no padding."""
        inner = {id(child) for module in self._experts if module.knows_padding for child in module.modules()}
        return any(held.name == layer and id(held.module) in inner for held in self.layers)

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return all parameters that hold fractions, by full name; weights of experts one expert at a time."""
        names = {module: name for name, module in self.module.named_modules()}
        owners = [("", self.module), *((f"{names[experts]}.", experts.fused) for experts in self._experts)]
        return {
            f"{self.name}.{prefix}{name}": parameter
            for prefix, owner in owners
            for name, parameter in owner.named_parameters()
            if parameter.is_floating_point() and not (prefix and parameter.dim() == 3)
        }

    def run(self, activation: Activation, keep: bool) -> Any:
        """Return what the module returns for an activation, see `Activation.run`."""
        mask = activation.mask
        for module in self._experts:
            module.token_mask = None if mask is None else mask.reshape(-1)
        return activation.run(self.module, self.index, keep)

    def forward(self, activation: Activation, keep: bool = False) -> Tensor:
        """Return the hidden states that the block makes of an activation; ``keep`` what it hands to later blocks."""
        return self.returned.hidden(self.run(activation, keep))

    def advance(self, activation: Activation) -> None:
        """Replace an activation's hidden states by the block's output.

        Raises:
            NumericalError: a real token's hidden state became NaN or Inf.
        """
        hidden = self.forward(activation, keep=True)
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
        held = next(model.parameters()).device
        self.device = torch.device(device) if held.type == "meta" else held
        self.compute = compute
        self.skeleton = None if reader is None else Skeleton(model, reader, stored)
        self._fp32 = in_fp32(model, compute) if compute is not None else lambda name: False
        self._together = saved_together(model) if reader is None else {}  # while all parameters have their names

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
                held = masters(module, self.compute, self.device, lambda own: self._fp32(f"{name}.{own}"))
                module.to(self.device)
                stack.enter_context(adopted())
            else:
                held = {n: p.data for n, p in module.named_parameters(remove_duplicate=False)}
            stack.enter_context(evaluating(module))
            lists = stack.enter_context(opened(module))
            layers, skipped = self._layers(index, held)
            returned = vars(self)["manners"].returned[index] if "manners" in vars(self) else Returned()
            yield Block(index, name, module, layers, skipped, held, lists, returned)

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
        held = dict[str, Tensor](module.named_parameters(remove_duplicate=False))
        with opened(module):
            return self._layers(index, held)

    @contextmanager
    def _outer(self) -> Iterator[None]:
        """Give embeddings, final norm and head real weights."""
        if self.skeleton is None:
            yield
            return
        assert self.reader is not None and self.compute is not None
        self.skeleton.fill(self.reader, self.outer_names())
        absent = {name for name, p in self.model.named_parameters(remove_duplicate=False) if p.is_meta}
        self.model.tie_weights(absent)  # either of two may be the one on disk
        outside = {n: m for n, m in self.model.named_modules() if not n.startswith(self.blocks_name)}
        for prefix, module in outside.items():
            for name, parameter in list(module.named_parameters(recurse=False)):
                dtype = torch.float32 if self._fp32(f"{prefix}.{name}") else self.compute
                if parameter.dtype != dtype or parameter.device != self.device:
                    moved = parameter.data.to(self.device, dtype)
                    setattr(module, name, nn.Parameter(moved, requires_grad=False))
            for name, buffer in list(module.named_buffers(recurse=False)):
                module._buffers[name] = buffer.to(self.device)
        self.model.tie_weights()
        try:
            yield
        finally:
            for module in outside.values():
                if not any(child is self.blocks for child in module.modules()):
                    unload(module)

    @cached_property
    def manners(self) -> Manners:
        """How the model treats its blocks.

        Raises:
            LowdimError: it cannot be walked block by block.
        """
        with evaluating(self.model):
            return survey(self.model, self.blocks, self.device)

    def _call(self, batch: Batch) -> Any:
        return self.model(**model_inputs(self.model, batch, self.device))

    @torch.no_grad()
    def capture(self, batches: Sequence[Batch]) -> list[Activation]:
        """Return, per batch, the hidden states entering block 0 and the arguments of every block.

        For a model that padding disturbs, padded batches are cut into ones of equal lengths, which have none.
        """
        captured: list[Activation] = []
        if batches and not self.manners.padding:
            batches = [part for batch in batches for _, part in unpadded(batch)]
        with self._outer(), evaluating(self.model):
            for batch in batches:
                made = Activation(batch, torch.empty(0), [])

                def record(index: int, hidden: Tensor, call: Call, made: Activation = made) -> Tensor:
                    if not made.calls:
                        made.hidden = hidden
                    made.calls.append(call)
                    if index == len(self) - 1:
                        raise StopForward
                    return hidden

                with stubbed(self.blocks, record, self.manners.returned), suppress(StopForward):
                    self._call(batch)
                captured.append(made)
        return captured

    def logits(self, activations: Sequence[Activation]) -> Iterator[Tensor]:
        """Yield, per activation that has passed the last block, the logits ``[B, T, vocabulary]``."""
        with self._outer(), evaluating(self.model):
            for activation in activations:

                def replay(index: int, hidden: Tensor, call: Call, last: Tensor = activation.hidden) -> Tensor:
                    return last if index == len(self) - 1 else hidden

                with stubbed(self.blocks, replay, self.manners.returned):
                    out = self._call(activation.batch).logits
                yield out

    @torch.no_grad()
    def forward(self, batches: Sequence[Batch], advance: Callable[[], None] = lambda: None) -> Iterator[Tensor]:
        """Yield the logits of every batch, streaming through the blocks once.

        Args:
            batches: the tokens.
            advance: called after each block of each batch.
        """
        activations = self.capture(batches)
        for index in range(len(self)):
            with self.block(index) as block:
                for place, activation in enumerate(activations):
                    block.advance(activation)
                    if place < len(batches):  # padded ones may have been cut into more
                        advance()
        made = self.logits(activations)
        yield from made if self.manners.padding else joined(batches, made)


def watched(walk: Walk, blocks: int, title: str, progress: Progress) -> Callable[[Sequence[Batch]], Iterator[Tensor]]:
    """Report every call of `Stream.forward` as a stage that advances from the first block of the first batch on."""

    def run(batches: Sequence[Batch]) -> Iterator[Tensor]:
        with progress.stage(title, len(batches) * (blocks + 1), "steps") as stage:
            for logits in walk(batches, stage.advance):
                yield logits
                stage.advance()

    return run

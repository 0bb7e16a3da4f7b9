"""What training holds in memory with a method: counted from shapes, before anything is loaded."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from weakref import finalize

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lowdim.core import registry
from lowdim.core.errors import LowdimError, RecipeError, suggest
from lowdim.evaluate.cost.memory import Memory
from lowdim.nn.blocks import find_blocks, linear_layers
from lowdim.nn.lowrank import factorise_
from lowdim.train.optimizers.base import OptimizerRule, matrices, trainable

if TYPE_CHECKING:
    from transformers import PreTrainedModel

KINDS = ("optimizer", "sampling", "from-scratch")
BESIDE = ("lora", "factors")


def ways() -> list[str]:
    """Return the names of all methods: optimizers, and what trains with AdamW in less memory."""
    return [*(name for kind in KINDS for name in registry.names(kind)), *BESIDE]


@dataclass(frozen=True)
class Way:
    """A model as a method trains it.

    Attributes:
        model: with what the method adds, frozen where it trains nothing; maybe on the meta device.
        rule: of the optimizer.
        copies: weights that are 2:4, each with a mask of a byte, and in a `lowdim.train.loop.Loop` an fp32 copy.
    """

    model: nn.Module
    rule: OptimizerRule
    copies: tuple[Tensor, ...] = ()

    @property
    def layerwise(self) -> bool:
        """Whether every gradient is freed as soon as it is there."""
        return bool(getattr(self.rule, "layerwise", False))

    def held(self) -> Memory:
        """Return the bytes of weights, of gradients that there are at once, of state and of masks with copies.

        Raises:
            LowdimError: a matrix is too small for the rule, or of a layer that it cannot train.
        """
        self.rule.check_model(self.model)
        inner, chosen = {id(p) for p in matrices(self.model)}, trainable(self.model)
        found = [self.rule.bytes_of(p, id(p) in inner) for p in chosen]
        still = sum(p.nbytes for p in self.model.parameters() if not p.requires_grad)
        weights, state = (sum(column) for column in zip(*found, strict=True))
        gradients = (max if self.layerwise else sum)(p.nbytes for p in chosen)
        wider = sum(2 * (4 * p.numel() - p.nbytes) for p in self.copies)  # the state of fp32 copies is fp32
        return Memory(weights + still, gradients, state + wider, sum(5 * p.numel() for p in self.copies), 0)


def way(name: str, model: PreTrainedModel, rank: int | None = None, layerwise: bool = False) -> Way:
    """Return how a method trains a model.

    Args:
        name: one of `ways`.
        model: changed; its shapes and types count.
        rank: directions of those that have some; None is a quarter of the smallest matrix, and LoRA's own.
        layerwise: free gradients one by one, of those that can.

    Raises:
        RecipeError: the name is unknown, or the method cannot be had.
    """
    kind = next((kind for kind in KINDS if name in registry.names(kind)), "")
    if not kind and name not in BESIDE:
        raise RecipeError(f"unknown optimizer {name!r}. {suggest(name, ways())}")
    chosen = rank or max(1, min(min(p.shape) for p in matrices(model)) // 4)
    if kind == "optimizer":
        entry = registry.find(kind, name)
        given = {key: v for key, v in (("rank", chosen), ("layerwise", layerwise)) if key in entry.settings()}
        return Way(model, entry.load()(**given))
    rule = registry.find("optimizer", "adamw").load()()
    if kind == "sampling":
        for block in list(find_blocks(model)[1])[registry.find(kind, name).load()().active :]:
            block.requires_grad_(False)
    elif kind:
        return Way(model, rule, tuple(layer.weight for layer in linear_layers(model, attention=False).values()))
    elif name == "lora":
        from lowdim.train.finetune.adapter import check_peft, wrap
        from lowdim.train.finetune.recipe import Adapter

        check_peft()
        return Way(wrap(model, Adapter(rank=rank) if rank else Adapter(), None, 0), rule)
    else:
        factorise_(model, dict.fromkeys(linear_layers(model), chosen), "random")
    return Way(model, rule)


class _Live(TorchDispatchMode):
    """Counts the bytes of the storages that there are, behind every operation."""

    def __init__(self, known: set[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._sizes, self._now, self.line = dict.fromkeys(known, 0), 0, list[int]()

    def _freed(self, place: int) -> None:
        self._now -= self._sizes.pop(place)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for storage in (each.untyped_storage() for each in tree_leaves(found) if isinstance(each, Tensor)):
            if storage._cdata not in self._sizes:
                self._sizes[storage._cdata] = storage.nbytes()
                self._now += storage.nbytes()
                finalize(storage, self._freed, storage._cdata).atexit = False
        self.line.append(self._now)
        return found


class Pass(NamedTuple):
    """Bytes beside the weights in a forward and a backward pass.

    Attributes:
        line: activations, gradients and what is there for a moment, behind every operation.
        kept: what the forward pass keeps for the backward pass.
        most: at the worst moment.
    """

    line: Tensor
    kept: int
    most: int


class Passes:
    """Passes of causal language models over sequences of a length, without checkpointing; nothing is computed.

    Attention is counted as a kernel that keeps its probabilities; one that computes them again keeps less. What happens
    inside an operation is not in it, nor what an update needs for a moment.

    Args:
        length: tokens of a sequence.
    """

    def __init__(self, length: int) -> None:
        self.length = length
        self._known: dict[tuple[Any, ...], Pass] = {}

    def of(self, way: Way, batch: int) -> Pass:
        """Return a pass of a model on the meta device over so many sequences.

        Raises:
            LowdimError: the model does not run on shapes alone.
        """
        shapes = tuple((p.shape, p.dtype, p.requires_grad) for p in way.model.parameters())
        key = (type(way.model), shapes, way.layerwise, batch)
        if key not in self._known:
            self._known[key] = self._run(way, batch)
        return self._known[key]

    def largest(self, way: Way, room: int) -> int:
        """Return the most sequences whose pass fits into some bytes; 0 if one does not.

        Two passes tell how every moment grows with the batch, from two sequences on: by as much for each.
        """
        two, three = self.of(way, 2), self.of(way, 3)
        if two.most > room:
            return int(self.of(way, 1).most <= room)
        grows = three.line - two.line
        return 2 + int(((room - two.line)[grows > 0] // grows[grows > 0]).min())

    def _run(self, way: Way, batch: int) -> Pass:
        model = way.model.train()
        ids = torch.zeros(batch, self.length, dtype=torch.long, device="meta")
        given: dict[str, Any] = {"input_ids": ids, "labels": ids, "use_cache": False}
        if getattr(model, "_supports_sdpa", True):  # a mask that says nothing, which no kernel needs to look at
            kind = next(model.parameters()).dtype
            given["attention_mask"] = torch.zeros(batch, 1, self.length, self.length, dtype=kind, device="meta")
        # Experts one by one ask what their inputs are; most models have none.
        with suppress(AttributeError, ValueError):
            cast("Any", model).set_experts_implementation("grouped_mm")
        tensors = (each for each in given.values() if isinstance(each, Tensor))
        live = _Live({each.untyped_storage()._cdata for each in (*model.parameters(), *model.buffers(), *tensors)})
        hooks = [p.register_post_accumulate_grad_hook(_free) for p in trainable(model) if way.layerwise]
        try:
            with torch.random.fork_rng(devices=[]), live:
                loss = model(**given).loss
                kept = live.line[-1]
                loss.backward()
        except (NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            raise LowdimError(
                f"a {type(model).__name__} does not run on shapes alone: {str(error).splitlines()[0].rstrip('.')}. "
                "Plan a mixture of experts in bfloat16 (--dtype); of another model, measure a step."
            ) from error
        finally:
            for hook in hooks:
                hook.remove()
            model.zero_grad()
        return Pass(torch.tensor(live.line), kept, max(live.line))


def _free(parameter: Tensor) -> None:
    parameter.grad = None

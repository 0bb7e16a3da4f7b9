"""The places in a decoder where norms stand, told by a run of a few tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lowdim.core.errors import LowdimError
from lowdim.core.random import generator
from lowdim.nn.blocks import find_blocks
from lowdim.nn.residual.rule import PRE, SANDWICH, Rule

_TOKENS = 5


@dataclass(frozen=True)
class Branch:
    """One branch of a block as it comes: names of modules of the block.

    Attributes:
        layer: attention, or the MLP.
        before: the norm of what it reads.
        after: the norm of what it returns; empty if there is none.
    """

    layer: str
    before: str
    after: str = ""

    @property
    def norms(self) -> tuple[str, ...]:
        """The names of its norms."""
        return (self.before, self.after) if self.after else (self.before,)


@dataclass(frozen=True)
class Site:
    """A block of a decoder: its name in the model, itself, its two branches in the order in which they run, and a call.

    The call is what it was given over a few tokens.
    """

    name: str
    block: nn.Module
    branches: tuple[Branch, Branch]
    call: tuple[tuple[Any, ...], dict[str, Any]]

    @property
    def own(self) -> Rule:
        """The rule that the block comes with."""
        return SANDWICH if self.branches[0].after else PRE


def find_sites(model: nn.Module) -> list[Site]:
    """Return the blocks of a decoder with their branches and norms.

    The model runs once over a few tokens, in training mode and without gradients. What norms and branches return is
    replaced by random numbers on the way, so that the answer does not depend on the weights: each must then read
    exactly what the form says, down to the bit.

    Raises:
        LowdimError: a block is of neither form; says what it does instead.
    """
    prefix, blocks = find_blocks(model)
    recorders = {f"{prefix}.{index}": _Recorder(block, index) for index, block in enumerate(blocks)}
    with _trying(model), torch.no_grad():
        try:
            for recorder in recorders.values():
                recorder.listen()
            model(input_ids=few_tokens(model), use_cache=False)
        except Exception as error:  # whatever a model's own code raises
            raise LowdimError(f"{type(model).__name__} does not run over a few tokens alone: {error}") from error
        finally:
            for recorder in recorders.values():
                recorder.leave()
    return [Site(name, each.block, each.branches(name), each.call) for name, each in recorders.items()]


def few_tokens(model: Any) -> Tensor:
    """Return token ids to try a model with, int64 [1, a few]."""
    device = model.get_input_embeddings().weight.device
    return torch.arange(1, _TOKENS + 1, device=device)[None]


@contextmanager
def _trying(model: nn.Module) -> Iterator[None]:
    """Put a model in training mode, without checkpoints of activations, and give back what it was, the dice too."""
    modes = [(module, module.training) for module in model.modules()]
    checkpointed: list[Any] = [module for module in model.modules() if module.__dict__.get("gradient_checkpointing")]
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    try:
        model.train()
        for module in checkpointed:
            module.gradient_checkpointing = False
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        for module in checkpointed:
            module.gradient_checkpointing = True


@dataclass
class _Recorder:
    """Hears what one block and the modules in it are given and return."""

    block: nn.Module
    index: int
    events: list[tuple[str, Tensor, Tensor]] = field(default_factory=list)
    stream: list[Tensor] = field(default_factory=list)
    call: tuple[tuple[Any, ...], dict[str, Any]] = field(default_factory=lambda: ((), {}))
    _hooks: list[Any] = field(default_factory=list)

    def listen(self) -> None:
        """Begin."""
        for name, child in self.block.named_children():
            if not isinstance(child, nn.Dropout | nn.Identity):
                hook = partial(self._heard, name)
                self._hooks.append(child.register_forward_hook(hook, with_kwargs=True))
        self._hooks.append(self.block.register_forward_pre_hook(self._begins, with_kwargs=True))
        self._hooks.append(self.block.register_forward_hook(self._ends))

    def leave(self) -> None:
        """Stop."""
        for hook in self._hooks:
            hook.remove()

    def _begins(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.stream.append(first(args, kwargs).clone())
        self.call = args, kwargs

    def _ends(self, block: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.stream.append(first_of(output))

    def _heard(self, name: str, child: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        given, made = first(args, kwargs), first_of(output)
        if given is None or made is None or made.shape != given.shape or not made.is_floating_point():
            return None
        dice = generator(self.index, "placement", len(self.events))
        made = torch.randn(made.shape, generator=dice).to(made)
        self.events.append((name, given.clone(), made))
        return (made, *output[1:]) if isinstance(output, tuple) else made

    def branches(self, name: str) -> tuple[Branch, Branch]:
        """Return the two branches.

        Raises:
            LowdimError: the block is of neither form.
        """
        names = [event[0] for event in self.events]
        why = self._misfit()
        if why:
            raise LowdimError(
                f"{name} ({type(self.block).__name__}) has other norms than a placement can move: {why}. It runs "
                f"{', '.join(names) or 'nothing that could be heard'}. Placements are for blocks that add attention, "
                "then an MLP to the stream, each with a norm before it, or one before and one after"
            )
        half = len(names) // 2
        one, two = (Branch(part[1], part[0], *part[2:]) for part in (names[:half], names[half:]))
        return one, two

    def _misfit(self) -> str:
        """Return why the block is of neither form; empty if it is of one."""
        if len(self.stream) != 2:
            return "it ran other than once over a few tokens"
        kinds = "".join("n" if _is_norm(self.block.get_submodule(name)) else "f" for name, *_ in self.events)
        if kinds not in ("nfnf", "nfnnfn"):
            return _STORIES.get(kinds, "its norms and branches do not come in that order")
        given, made = [event[1] for event in self.events], [event[2] for event in self.events]
        half, (x, y) = len(kinds) // 2, self.stream
        for start, stream, after in ((0, x, given[half]), (half, given[half], y)):
            if not torch.equal(given[start], stream):
                return "its branches read something else than the stream"
            for place in range(start + 1, start + half):
                if not torch.equal(given[place], made[place - 1]):
                    return "something stands between its norms and its branches"
            if not torch.equal(after, stream + made[start + half - 1]):
                parallel = torch.equal(given[half], x)
                return (
                    "its branches are parallel"
                    if parallel
                    else "it does not simply add its branches to the stream (a factor or a dropout stands between)"
                )
        return ""


_STORIES = {
    "fnfn": "it has norms after its branches alone",
    "nff": "its branches share one norm",
    "nf": "it has one branch that is seen",
    "ff": "it has no norms",
}


def first(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Return the first tensor of numbers among arguments; None if there is none."""
    tensors = (each for each in (*args, *kwargs.values()) if isinstance(each, Tensor) and each.is_floating_point())
    return next(tensors, None)


def first_of(output: Any) -> Any:
    """Return the tensor that a module returns alone or first; None if it returns something else."""
    found = output[0] if isinstance(output, tuple) and output else output
    return found if isinstance(found, Tensor) else None


def _is_norm(module: nn.Module) -> bool:
    """Tell whether a module has no matrix: among what maps the stream to its own shape, that is a norm."""
    return all(parameter.dim() < 2 for parameter in module.parameters())

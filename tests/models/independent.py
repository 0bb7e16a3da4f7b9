"""What a model computes, seen from outside: forwards of the whole model, the inputs of its weights, Wanda.

Nothing of the package is used here. A weight's inputs are seen where they are multiplied by it, whatever module holds
it: matrices, one expert of a stack, or the whole stack at once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

PRODUCTS = {torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm, torch.mm, Tensor.mm}
BIASED = {torch.addmm, Tensor.addmm}


@torch.no_grad()
def logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Return the logits of sequences of one length, without a cache."""
    try:
        found: Tensor = model(input_ids=ids, use_cache=False).logits
    except TypeError:
        found = model(input_ids=ids).logits
    return found


class Inputs(TorchFunctionMode):
    """Sums of the squares of what is multiplied by chosen weights, ``[in]`` for a matrix, ``[stack, in]`` for a stack.

    Attributes:
        squares: per parameter, the sums; zero where nothing came by.
        tokens: per parameter, how many vectors came by, per member of a stack.
        along: per parameter, the dimension (of its last two) that the inputs run along.
    """

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.parameters = parameters
        self.squares: dict[str, Tensor] = {}
        self.tokens: dict[str, Tensor] = {}
        self.along: dict[str, int] = {}
        self._owners = {p.untyped_storage().data_ptr(): name for name, p in parameters.items()}

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if func is linear:
            self._note(args[0], args[1], -1)
        elif func in PRODUCTS:
            self._note(args[0], args[1], -2)
        elif func in BIASED:
            self._note(args[1], args[2], -2)
        return func(*args, **(kwargs or {}))

    def _note(self, x: Tensor, weight: Tensor, along: int) -> None:
        name = self._owners.get(weight.untyped_storage().data_ptr())
        if name is None or weight.dim() < 2:
            return
        whole = self.parameters[name]
        if weight.stride()[-2:] != whole.stride()[-2:]:
            along = -3 - along  # seen transposed: -1 becomes -2 and back
        rows = x.detach().double().square().reshape(-1, x.shape[-1])
        if name not in self.squares:
            stack = whole.shape[:-2]
            self.squares[name] = torch.zeros(*stack, whole.shape[along], dtype=torch.float64)
            self.tokens[name] = torch.zeros(stack, dtype=torch.int64)
            self.along[name] = along
        if weight.dim() == 3:
            self.squares[name] += x.detach().double().square().sum(-2)
            self.tokens[name] += (x != 0).any(-1).sum(-1)
        elif whole.dim() == 3:
            member = (weight.storage_offset() - whole.storage_offset()) // whole.stride(0)
            self.squares[name][member] += rows.sum(0)
            self.tokens[name][member] += len(rows)
        else:
            self.squares[name] += rows.sum(0)
            self.tokens[name] += len(rows)

    def scores(self, name: str) -> Tensor:
        """Return Wanda's scores of a parameter, shaped as it."""
        scale = self.squares[name].sqrt()
        return self.parameters[name].detach().double().abs() * scale.unsqueeze(-3 - self.along[name])


def block_of(name: str) -> str:
    """Return the block that a parameter belongs to: its name up to the first number.

    Example:
        >>> block_of("model.layers.3.mlp.experts.1.weight")
        'model.layers.3'
    """
    found = re.match(r".*?\.\d+(?=\.)", name)
    return found[0] if found else ""


def wrong_masks(model: PreTrainedModel, pruned: Mapping[str, Tensor], samples: Sequence[Tensor]) -> list[str]:
    """Return what is wrong with Wanda's masks of a pruned model; each block sees what the pruned ones before it give.

    Every kept weight of a row must score at least what the dropped ones do, up to rounding.

    Args:
        model: the dense model; its blocks become the pruned ones.
        pruned: the pruned model's parameters by name.
        samples: token ids, one sequence each, which run one by one.
    """
    dense = dict(model.named_parameters())
    cut = [n for n, p in dense.items() if p.dim() >= 2 and bool((pruned[n] == 0).any() & (p != 0).any())]
    cut = [n for n in cut if not torch.equal(pruned[n] == 0, dense[n] == 0)]
    problems = [] if cut else ["nothing was pruned"]
    for block in dict.fromkeys(map(block_of, cut)):
        names = [name for name in cut if block_of(name) == block]
        seen = Inputs({name: dense[name] for name in names})
        with seen:
            for ids in samples:
                logits(model, ids[None])
        for name in names:
            problems += _wrong(name, pruned[name] != 0, seen)
        with torch.no_grad():
            for name, parameter in dense.items():
                if block_of(name) == block:
                    parameter.copy_(pruned[name])
    return problems


def _wrong(name: str, kept: Tensor, seen: Inputs) -> list[str]:
    if name not in seen.squares:
        return [f"{name} was pruned, and no input reached it"]
    idle = seen.tokens[name] == 0
    if bool((~kept).any(-1).any(-1)[idle].any()):
        return [f"{name}: an expert without a token was pruned"]
    scores = seen.scores(name)
    if seen.along[name] == -2:
        kept, scores = kept.transpose(-1, -2), scores.transpose(-1, -2)
    least = scores.masked_fill(~kept, torch.inf).amin(-1)
    most = scores.masked_fill(kept, -torch.inf).amax(-1)
    wrong = int((least < most * (1 - 1e-4) - 1e-12).sum())
    return [f"{name}: {wrong} of {least.numel()} rows keep less than they drop"] if wrong else []

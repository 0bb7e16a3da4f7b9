"""Which weight of a network is its head, the layer that gives the answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

HEADS = ("lm_head", "head", "heads", "classifier", "score", "logits", "fc", "output")
HEAD = "head"
GUESSED = "head (a guess: the last linear layer; include or exclude says otherwise)"

Found = tuple[str, nn.Module, nn.Parameter]


def find_head(model: nn.Module, found: Sequence[Found]) -> tuple[nn.Parameter, str] | None:
    """Return the head's weight and what it is known from; ``None`` if there is none.

    A model says it (``get_output_embeddings()``, ``get_classifier()``), or a module on the outermost level has a name
    that says it and no other layer takes its outputs. Otherwise the last linear layer outside of every
    ``nn.ModuleList`` is taken, where there is more than one layer.

    Args:
        model: the network.
        found: name, module and parameter of the weights that may be sparse.

    Example:
        >>> net = nn.ModuleDict({"classifier": nn.Linear(8, 2), "body": nn.Linear(4, 8), "aux": nn.Linear(8, 4)})
        >>> weights = [(name, m, m.weight) for name, m in net.named_children()]
        >>> weight, why = find_head(net, weights)
        >>> weight is net["classifier"].weight, why
        (True, 'head')
    """
    levels = list(_levels(model))
    said = next((weight for level in levels if (weight := _said(level)) is not None), None)
    if said is not None:
        return said, HEAD
    linear = [w for w in found if isinstance(w[1], nn.Linear)]
    if len(found) < 2 or not linear:
        return None
    outermost = dict(levels[-1].named_children())
    for module in (outermost[name] for name in HEADS if name in outermost):
        inside = {id(m) for m in module.modules()}
        last = next((w for w in reversed(linear) if id(w[1]) in inside), None)
        if last is not None and not _goes_on(last, linear, inside):
            return last[2], HEAD
    return None if id(linear[-1][1]) in listed(model) else (linear[-1][2], GUESSED)


def listed(model: nn.Module) -> set[int]:
    """Return the modules that are inside of an ``nn.ModuleList``, by id."""
    return {id(m) for outer in model.modules() if isinstance(outer, nn.ModuleList) for m in outer.modules()}


def _said(model: nn.Module) -> nn.Parameter | None:
    """Return the weight of the layer that the model itself calls its output or classifier."""
    for question in ("get_output_embeddings", "get_classifier"):
        answer: Any = getattr(model, question, None)
        module = answer() if callable(answer) else None
        if isinstance(module, nn.Module):
            linear = [m for m in module.modules() if isinstance(m, nn.Linear)]
            weight = getattr(linear[-1] if linear else module, "weight", None)
            if isinstance(weight, nn.Parameter):
                return weight
    return None


def _levels(model: nn.Module) -> Iterator[nn.Module]:
    """Yield a module and what it merely wraps, from the outside in."""
    yield model
    inner = [child for child in model.children() if next(child.parameters(), None) is not None]
    if len(inner) == 1 and not isinstance(model, nn.Sequential | nn.ModuleList):
        yield from _levels(inner[0])


def _goes_on(head: Found, linear: Sequence[Found], inside: set[int]) -> bool:
    """Tell whether another layer could take the outputs, so that they are not the network's answer."""
    width = head[2].shape[0]
    return any(w[2].shape[1] == width for w in linear if id(w[1]) not in inside)

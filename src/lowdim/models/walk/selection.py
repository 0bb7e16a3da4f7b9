"""Which weights of a network become sparse."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lowdim.core.errors import RecipeError
from lowdim.core.recipe.which import choose, matches

_PLAIN = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)
_WRAPPERS = ("module.", "_orig_mod.", "_fsdp_wrapped_module.")


@dataclass(frozen=True)
class Weight:
    """One weight that may become sparse, and where it lives."""

    name: str
    module: nn.Module
    attribute: str
    parameter: nn.Parameter
    dense: str = ""  # why it stays dense; empty if it becomes sparse


def select(
    model: nn.Module, include: Sequence[str] | None = None, exclude: Sequence[str] | None = None
) -> dict[str, nn.Parameter]:
    """Return the weights that become sparse, by parameter name, in the order of the model.

    Candidates are the weights, of two or more dimensions, of linear, convolutional and recurrent layers and of
    ``nn.MultiheadAttention``; never biases, norms and embeddings, nor a weight tied to an embedding. By default the
    head stays dense too (the output embedding of a language model, else the last linear layer outside of every
    ``nn.ModuleList``), and so do frozen parameters.

    Args:
        model: any module. The names that DistributedDataParallel and torch.compile prefix are left out.
        include: globs on parameter or module names ("layers.*.fc1"), or regular expressions searched for in them
            ("re:fc[12]"); if given, the candidates that match and only those, heads too.
        exclude: the same of what stays dense.

    Raises:
        RecipeError: an expression matches nothing, nothing is left, or a weight asked for is frozen.

    Example:
        >>> net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> list(select(net)), list(select(net, include=["*"]))
        (['0.weight'], ['0.weight', '2.weight'])
    """
    return {w.name: w.parameter for w in weights(model, include, exclude) if not w.dense}


def weights(
    model: nn.Module, include: Sequence[str] | None = None, exclude: Sequence[str] | None = None
) -> list[Weight]:
    """Return every candidate, with the reason where it stays dense; see `select`."""
    found = list(_candidates(model))
    choose([w.name for w in found], include, exclude)
    head = _head(model, found) if include is None else None
    judged = [_judge(w, include, exclude or (), head) for w in found]
    if all(w.dense for w in judged):
        why = "; ".join(f"{w.name}: {w.dense}" for w in judged[:5]) or "there is none in the model"
        raise RecipeError(f"no weight is left to be sparse ({why}). Name some with include=[...]")
    return judged


def plain_name(name: str) -> str:
    """Return a parameter's name without the prefixes of wrappers.

    Example:
        >>> plain_name("module._orig_mod.fc.weight")
        'fc.weight'
    """
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "") if name.startswith(wrapper) or f".{wrapper}" in name else name
    return name


def _candidates(model: nn.Module) -> Iterator[Weight]:
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag))}
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        for attribute in _attributes(module):
            parameter = module._parameters.get(attribute)
            if parameter is None or parameter.ndim < 2 or id(parameter) in seen | embeddings:
                continue
            seen.add(id(parameter))
            name = plain_name(f"{prefix}.{attribute}" if prefix else attribute)
            yield Weight(name, module, attribute, parameter)


def _attributes(module: nn.Module) -> list[str]:
    own = [name for name, p in module._parameters.items() if p is not None]
    if isinstance(module, _RECURRENT):
        return [name for name in own if name.startswith("weight")]
    if isinstance(module, nn.MultiheadAttention):
        return [name for name in own if name.endswith("proj_weight")]
    if isinstance(module, _PLAIN) or type(module).__name__ == "Conv1D":  # the transposed linear layer of transformers
        return ["weight"]
    return []


def inputs_first(module: nn.Module) -> bool:
    """Tell whether a layer's weight is [in, out, ...]: a transposed convolution, or the Conv1D of transformers."""
    transposed = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    return isinstance(module, transposed) or type(module).__name__ == "Conv1D"


def _head(model: nn.Module, found: list[Weight]) -> nn.Parameter | None:
    output: Any = getattr(model, "get_output_embeddings", None)
    if callable(output) and (module := output()) is not None:
        return getattr(module, "weight", None)
    listed = {id(m) for outer in model.modules() if isinstance(outer, nn.ModuleList) for m in outer.modules()}
    linear = [w for w in found if isinstance(w.module, nn.Linear)]
    if len(found) < 2 or not linear or id(linear[-1].module) in listed:
        return None
    return linear[-1].parameter


def _judge(w: Weight, include: Sequence[str] | None, exclude: Sequence[str], head: nn.Parameter | None) -> Weight:
    dense = ""
    if any(matches(text, w.name) for text in exclude):
        dense = "excluded"
    elif include is not None and not any(matches(text, w.name) for text in include):
        dense = "not included"
    elif include is not None and not w.parameter.requires_grad:
        raise RecipeError(
            f"include names {w.name}, which is frozen (requires_grad is False): a mask that moves needs its "
            "gradient. Unfreeze it, or leave it out"
        )
    elif w.parameter is head:
        dense = "head"
    elif not w.parameter.requires_grad:
        dense = "frozen"
    elif w.parameter.numel() == 0:
        dense = "empty"
    return Weight(w.name, w.module, w.attribute, w.parameter, dense)


def shares_memory(tensors: dict[str, Tensor]) -> list[tuple[str, str]]:
    """Return the pairs of names whose tensors are views of the same memory."""
    first: dict[tuple[int, str], str] = {}
    pairs = []
    for name, tensor in tensors.items():
        if tensor.numel() == 0 or not hasattr(tensor, "untyped_storage"):
            continue
        key = (int(tensor.untyped_storage().data_ptr() + tensor.storage_offset()), str(tensor.device))
        if key in first and key[0]:
            pairs.append((first[key], name))
        first.setdefault(key, name)
    return pairs

"""States as safetensors: nested mappings and lists of tensors, numbers and text, brought back exactly as they were."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lowdim.core.errors import CheckpointError


def pack(tree: Any) -> tuple[str, dict[str, Tensor]]:
    """Return JSON that says where everything is, and the tensors by the number that stands for them in it.

    A tensor of a class of its own is taken apart into its inner tensors, and not into the numbers that it stands for.

    Raises:
        TypeError: something is neither a mapping, a list, a tuple, a tensor nor plain.

    Example:
        >>> import torch
        >>> text, tensors = pack({"step": 3, "state": {0: torch.ones(2)}})
        >>> unpack(text, tensors)
        {'step': 3, 'state': {0: tensor([1., 1.])}}
    """
    tensors: dict[str, Tensor] = {}

    def plain(value: Any) -> Any:
        if isinstance(value, Tensor):
            held: Any = value.detach().cpu()
            if type(held) is not Tensor:
                names, how = held.__tensor_flatten__()
                inner = {name: getattr(held, name) for name in names}
                return {"made of": [_name(type(held)), plain(inner), plain(how)]}
            tensors[str(len(tensors))] = held
            return {"tensor": str(len(tensors) - 1)}
        if isinstance(value, torch.dtype):
            return {"dtype": str(value).removeprefix("torch.")}
        if isinstance(value, Mapping):
            return {"map": [[plain(key), plain(item)] for key, item in value.items()]}
        if isinstance(value, tuple):
            return {"tuple": [plain(item) for item in value]}
        if isinstance(value, list):
            return [plain(item) for item in value]
        if value is None or isinstance(value, (str, bool, int, float)):
            return value
        raise TypeError(f"a state may hold tensors, numbers and text; got {type(value).__name__}")

    return json.dumps(plain(tree), separators=(",", ":")), tensors


def _name(kind: Any) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _class(name: str) -> Any:
    """Return a class of tensors among those that were declared to be safe."""
    known = {_name(kind): kind for kind in torch.serialization.get_safe_globals() if isinstance(kind, type)}
    if name not in known:
        raise CheckpointError(
            f"the state holds a {name}, which this process does not know. Import it, and declare it with "
            "torch.serialization.add_safe_globals"
        )
    return known[name]


def unpack(text: str, tensors: Mapping[str, Tensor]) -> Any:
    """Return what `pack` was given.

    Raises:
        CheckpointError: it holds a class of tensors that `torch.serialization.add_safe_globals` was never told of.
    """

    def build(value: Any) -> Any:
        if isinstance(value, list):
            return [build(item) for item in value]
        if not isinstance(value, dict):
            return value
        ((kind, content),) = value.items()
        if kind == "tensor":
            return tensors[content]
        if kind == "dtype":
            return getattr(torch, content)
        if kind == "made of":
            return _class(content[0]).__tensor_unflatten__(build(content[1]), build(content[2]), None, None)
        if kind == "tuple":
            return tuple(build(item) for item in content)
        return {build(key): build(item) for key, item in content}

    return build(json.loads(text))

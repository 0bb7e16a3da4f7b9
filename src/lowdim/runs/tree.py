"""States as safetensors: nested mappings and lists of tensors, numbers and text, brought back exactly as they were."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor


def pack(tree: Any) -> tuple[str, dict[str, Tensor]]:
    """Return JSON that says where everything is, and the tensors by the number that stands for them in it.

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
            tensors[str(len(tensors))] = value.detach().cpu()
            return {"tensor": str(len(tensors) - 1)}
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


def unpack(text: str, tensors: Mapping[str, Tensor]) -> Any:
    """Return what `pack` was given."""

    def build(value: Any) -> Any:
        if isinstance(value, list):
            return [build(item) for item in value]
        if not isinstance(value, dict):
            return value
        ((kind, content),) = value.items()
        if kind == "tensor":
            return tensors[content]
        if kind == "tuple":
            return tuple(build(item) for item in content)
        return {build(key): build(item) for key, item in content}

    return build(json.loads(text))

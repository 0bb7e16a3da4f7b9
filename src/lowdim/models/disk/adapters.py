"""Adapters of PEFT, which are no models: refused wherever they turn up, with one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from lowdim.core.errors import CheckpointError

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.*"


def refuse_adapter(what: str) -> CheckpointError:
    """Return the error that something holds an adapter."""
    return CheckpointError(
        f"{what} holds a PEFT adapter beside the weights that it changes. Merge it first: "
        "model = PeftModel.from_pretrained(base, adapter).merge_and_unload(); then give that model, or the directory "
        "that you saved it to."
    )


def check_directory(path: Path) -> None:
    """Refuse a directory with an adapter in it, whatever else it holds: Transformers would load the adapter too.

    Raises:
        CheckpointError: there is one.
    """
    if (path / _CONFIG).exists() or any(path.glob(_WEIGHTS)):
        raise refuse_adapter(str(path))


def check_model(model: Any) -> None:
    """Refuse a model that PEFT has wrapped, or has put its layers into.

    Raises:
        CheckpointError: it has.
    """
    if is_adapted(model):
        raise refuse_adapter(type(model).__name__)


def is_adapted(model: Any) -> bool:
    """Tell whether PEFT has wrapped a model, or has put its layers into it."""
    modules = model.modules() if isinstance(model, nn.Module) else ()
    tuned = any(hasattr(module, "base_layer") and hasattr(module, "adapter_layer_names") for module in modules)
    return tuned or bool(getattr(model, "peft_config", None))

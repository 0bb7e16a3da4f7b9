"""Models that are no stock ones any more refuse to be saved as if they were."""

from __future__ import annotations

from functools import partial
from typing import NoReturn

from torch import nn

from lowdim.core.errors import LowdimError


def refuse_to_save(model: nn.Module, why: str) -> None:
    """Let a model of Transformers refuse ``save_pretrained``: what it would write is loaded as something else, unsaid.

    Example:
        >>> model = nn.Linear(2, 2)
        >>> refuse_to_save(model, "never")  # which has no such method
        >>> "save_pretrained" in vars(model)
        False
    """
    if hasattr(model, "save_pretrained"):
        model.__dict__["save_pretrained"] = partial(_refuse, why)


def refuses_to_save(model: nn.Module, why: str) -> bool:
    """Tell whether a model refuses for a reason; the last one that was given counts."""
    held = model.__dict__.get("save_pretrained")
    return isinstance(held, partial) and held.args == (why,)


def _refuse(why: str, *_: object, **__: object) -> NoReturn:
    raise LowdimError(why)

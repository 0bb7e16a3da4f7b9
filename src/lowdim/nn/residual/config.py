"""A placement in the config of its model, and in a ``config.json`` that nothing but lowdim takes for a stock one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from copy import deepcopy
from functools import cache
from types import MethodType
from typing import TYPE_CHECKING, Any

from lowdim.core.errors import LowdimError
from lowdim.core.recipe.families import build, describe

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from lowdim.nn.placement.base import Placement

KEY = "lowdim_placement"
"""The attribute of a config, and the key on disk, that holds a placement as a mapping."""
TYPE = "lowdim-placement"
"""The ``model_type`` on disk, which no other program knows."""
REFUSAL = "norms stand elsewhere, see lowdim_placement: load this with lowdim.load"
_NEEDED = ("vocab_size", "text_config")
"""What the config of every language model of Transformers reads, and cannot read in `REFUSAL`."""
_WRITTEN: ContextVar[Any] = ContextVar("_WRITTEN", default=None)
"""The config whose placed model is being saved."""


class _Marked:
    """Mixed into the class of a config: on disk, the stock config is one value of another.

    It lies there without its type, by which the classes of Transformers would find it. ``AutoModelForCausalLM`` does
    not know the type of the whole, and a class that is called by its name stumbles over its sizes.
    """

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Write ``config.json`` beside the weights of a placed model.

        Raises:
            LowdimError: it is not one that is saved; a stock model made from this config would be read as a placed one.
        """
        if _WRITTEN.get() is not self:
            raise LowdimError(
                f"this config is that of a model with {placement_of(self)}, and no such model is being saved: one that "
                "was made from the config alone is a stock model, and would be loaded as another. Make it from "
                "lowdim.nn.residual.config.stock(config), or give it the placement with apply_; of a placed model, "
                "save the model"
            )
        super().save_pretrained(*args, **kwargs)  # type: ignore[misc]

    def to_json_string(self, use_diff: bool = True) -> str:
        """Return the text of ``config.json``."""
        stock = json.loads(super().to_json_string(use_diff))  # type: ignore[misc]
        whole = {
            "model_type": TYPE,
            **dict.fromkeys(_NEEDED, REFUSAL),
            KEY: stock.pop(KEY),
            "stock_type": stock.pop("model_type"),
            "stock": stock,
        }
        return json.dumps(whole, indent=2, sort_keys=True) + "\n"

    def __reduce__(self) -> Any:
        return _again, (_stock(type(self)), self.__dict__)


@cache
def _marked(stock: type[Any]) -> type[Any]:
    return type(stock.__name__, (_Marked, stock), {"__module__": stock.__module__})


def _stock(cls: type[Any]) -> type[Any]:
    return next(each for each in cls.__mro__ if not issubclass(each, _Marked))


def _again(stock: type[Any], state: dict[str, Any]) -> Any:
    config = object.__new__(_marked(stock))  # type: ignore[arg-type]
    config.__dict__.update(state)
    return config


@contextmanager
def written(model: PreTrainedModel) -> Iterator[None]:
    """Let the config of a placed model be written; that of a stock one always may."""
    from lowdim.nn.residual.block import is_placed  # torch

    token = _WRITTEN.set(model.config if any(map(is_placed, model.modules())) else None)
    try:
        yield
    finally:
        _WRITTEN.reset(token)


def _save(model: PreTrainedModel, *args: Any, **kwargs: Any) -> None:
    """Save a placed model as its class does."""
    with written(model):
        type(model).save_pretrained(model, *args, **kwargs)


def stock(config: Any) -> Any:
    """Return a copy of a config without a placement."""
    made = deepcopy(config)
    made.__class__ = _stock(type(made))
    made.__dict__.pop(KEY, None)
    return made


def mark(model: PreTrainedModel, placement: Placement) -> None:
    """Write a placement into the config of a model, which gets one of its own: other models may share the old one."""
    copies: dict[int, Any] = {}
    config = deepcopy(model.config, copies)
    for module in model.modules():
        for name, value in vars(module).items():
            if hasattr(value, "model_type") and id(value) in copies:
                module.__dict__[name] = copies[id(value)]
    setattr(config, KEY, describe("placement", placement))
    config.__class__ = _marked(_stock(type(config)))  # type: ignore[arg-type]
    model.__dict__["save_pretrained"] = MethodType(_save, model)


def unmark(model: PreTrainedModel) -> None:
    """Take a placement out of the config of a model."""
    delattr(model.config, KEY)
    del model.__dict__["save_pretrained"]
    model.config.__class__ = _stock(type(model.config))


def placement_of(config: Any) -> Placement | None:
    """Return the placement that a model's config remembers; None for a stock model."""
    found = getattr(config, KEY, None)
    return None if found is None else build("placement", found)


def on_disk(raw: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any] | None]:
    """Return the stock config in a decoded ``config.json``, and the placement as a mapping, None where it has none."""
    if raw.get("model_type") != TYPE:
        return raw, None
    return {**raw["stock"], "model_type": raw["stock_type"]}, raw[KEY]

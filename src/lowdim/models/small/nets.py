"""Small networks that two cores train in minutes, in plain torch."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, ValidationError

from lowdim.core.errors import RecipeError, suggest
from lowdim.core.lazy import torch
from lowdim.core.random import derive_seed
from lowdim.core.recipe import Count, Section, messages

if TYPE_CHECKING:
    from lowdim.data.classification import Dataset, Kind

Widths = Annotated[tuple[Count, ...], BeforeValidator(lambda given: tuple(given) if isinstance(given, list) else given)]


Norm = Literal["batch", "none"]


class Net(Section):
    """A network's settings; ``build`` makes the module for some data.

    Attributes:
        kinds: of data that it takes.
        widths: which setting says how wide its layers are.
    """

    kinds: ClassVar[tuple[Kind, ...]] = ()
    widths: ClassVar[str] = "hidden"

    @abstractmethod
    def module(self, data: Dataset) -> torch.nn.Module:
        """Return the network, initialised by torch's own rules."""

    def scaled(self, factor: float) -> Self:
        """Return the settings of a network whose layers are ``factor`` times as wide, at least 1."""
        wide = tuple(max(1, round(factor * width)) for width in getattr(self, self.widths))
        return self.model_copy(update={self.widths: wide})

    def build(self, data: Dataset, seed: int) -> torch.nn.Module:
        """Return the network, its weights a function of ``seed`` alone; the global generator is left as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "net"))
            return self.module(data)

    def parameters(self, data: Dataset) -> int:
        """Return how many parameters the network has, without making them."""
        with torch.device("meta"):
            return sum(p.numel() for p in self.module(data).parameters())

    def within(self, data: Dataset, budget: int) -> Self:
        """Return the widest network of this form with at most ``budget`` parameters, by halving the interval."""
        low, high = 0.0, 1.0
        for _ in range(12):
            middle = (low + high) / 2
            low, high = (middle, high) if self.scaled(middle).parameters(data) <= budget else (low, middle)
        return self.scaled(low)


def _stack(first: torch.nn.Module, widths: Sequence[int], classes: int, norm: Norm) -> torch.nn.Module:
    net = torch.nn.Sequential()
    net.add_module("input", first)
    for number, (inside, outside) in enumerate(pairwise(widths), start=1):
        net.add_module(f"hidden{number}", torch.nn.Linear(inside, outside))
        if norm == "batch":
            net.add_module(f"norm{number}", torch.nn.BatchNorm1d(outside))
        net.add_module(f"relu{number}", torch.nn.ReLU())
    net.add_module("head", torch.nn.Linear(widths[-1], classes))
    return net


class MLP(Net):
    """Linear layers with ReLU between them.

    Args:
        name: "mlp".
        hidden: width of each hidden layer.
        norm: "batch" norm before each ReLU, or "none". Very sparse layers pass on little: without a norm, random
            masks with 98% zeros stop three layers from learning at all.
    """

    kinds = ("image", "table")

    name: Literal["mlp"] = "mlp"
    hidden: Widths = Field((300, 100), min_length=1)
    norm: Norm = "batch"

    def module(self, data: Dataset) -> torch.nn.Module:
        """Return the network."""
        return _stack(torch.nn.Flatten(), (math.prod(data.shape), *self.hidden), len(data.classes), self.norm)


class Conv(Net):
    """Residual blocks of two 3x3 convolutions with batch norm; the first convolution and each block after it halve.

    Args:
        name: "conv".
        channels: of the first convolution, and of each block that follows.
    """

    kinds = ("image",)
    widths = "channels"

    name: Literal["conv"] = "conv"
    channels: Widths = Field((16, 32, 64), min_length=1)

    def module(self, data: Dataset) -> torch.nn.Module:
        """Return the network."""
        from lowdim.models.small.modules import Residual

        return Residual(data.shape[0], self.channels, len(data.classes))


class Text(Net):
    """The mean of the words' embeddings, then an MLP; the embedding stays dense, and as wide in small twins.

    Args:
        name: "text".
        embedding: width of the embedding.
        hidden: width of each hidden layer.
        norm: "batch" norm before each ReLU, or "none".
    """

    kinds = ("text",)

    name: Literal["text"] = "text"
    embedding: Count = 64
    hidden: Widths = Field((256, 256), min_length=1)
    norm: Norm = "batch"

    def module(self, data: Dataset) -> torch.nn.Module:
        """Return the network."""
        words = torch.nn.EmbeddingBag(data.vocabulary, self.embedding, mode="mean", padding_idx=0)
        return _stack(words, (self.embedding, *self.hidden), len(data.classes), self.norm)


NETS: dict[str, type[Net]] = {"mlp": MLP, "conv": Conv, "text": Text}
USUAL: dict[str, str] = {"image": "mlp", "table": "mlp", "text": "text"}


def parse(value: Any) -> Net:
    """Return the network that a recipe names: ``mlp``, or ``{name: mlp, hidden: [512, 512, 512]}``.

    Raises:
        RecipeError: there is no such network; the nearest is suggested.

    Example:
        >>> parse({"name": "mlp", "hidden": [8]}).scaled(0.5)
        MLP(name='mlp', hidden=(4,), norm='batch')
    """
    if isinstance(value, Net):
        return value
    settings = {"name": value} if isinstance(value, str) else value
    if not isinstance(settings, dict) or not isinstance(settings.get("name"), str):
        raise RecipeError(f"net must be a name or a mapping with a name, got {value!r}. {suggest('', NETS)}")
    if settings["name"] not in NETS:
        raise RecipeError(f"unknown net {settings['name']!r}. {suggest(settings['name'], NETS)}")
    try:
        return NETS[settings["name"]](**settings)
    except ValidationError as error:
        own = [f"net.{key}" for key in NETS[settings["name"]].model_fields]
        raise RecipeError(messages.explain(error, "net", own)) from error


def keys() -> list[str]:
    """Return the dotted keys of all networks' settings.

    Example:
        >>> keys()
        ['net.name', 'net.hidden', 'net.norm', 'net.channels', 'net.embedding']
    """
    return list(dict.fromkeys(f"net.{key}" for net in NETS.values() for key in net.model_fields))

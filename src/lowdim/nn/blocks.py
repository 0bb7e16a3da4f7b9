"""Finding the decoder blocks of a model by structure, without a table of architectures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from lowdim.core.errors import LowdimError


def find_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Return the dotted name and the list of a model's decoder blocks.

    Of the ``ModuleList``s in the language model that are not themselves inside another one (a mixture of experts may
    have more experts than blocks), that is the outermost with as many members as the config has layers; where none
    has, the largest whose members share a class.

    Example:
        >>> blocks = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))
        >>> find_blocks(nn.ModuleDict({"layers": blocks, "heads": nn.ModuleList([nn.Linear(2, 2)])}))[0]
        'layers'
    """
    decoder, layers = model, None
    if isinstance(model, PreTrainedModel):
        decoder = model.get_decoder()
        with suppress(ValueError):  # a config of several decoders
            layers = getattr(model.config.get_text_config(decoder=True), "num_hidden_layers", None)
    found = list(_lists(model, decoder)) or list(_lists(model, model))
    if fitting := [(name, blocks) for name, blocks in found if len(blocks) == layers]:
        return max(fitting, key=lambda one: (-one[0].count("."), _numel(one[1])))
    alike = [(name, blocks) for name, blocks in found if len({type(m) for m in blocks}) == 1]
    if not alike:
        raise LowdimError(
            f"no decoder blocks found in {type(model).__name__}: it has no ModuleList of like modules. "
            "lowdim prunes decoder-only models built from a list of identical blocks."
        )
    return max(alike, key=lambda one: _numel(one[1]))


def _lists(model: nn.Module, part: nn.Module) -> Iterator[tuple[str, nn.ModuleList]]:
    """Yield the lists in a part of a model that are in no other list, with their names in the model."""
    within, inside = set(part.modules()), set[nn.Module]()
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and module in within and module not in inside and len(module):
            inside.update(m for m in module.modules() if m is not module)
            yield name, module


def _numel(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def recompute_(model: PreTrainedModel) -> None:
    """Let a model in training compute each block twice rather than keep its activations."""
    named: Any = model  # of older Transformers only the second name is known
    enable = getattr(named, "activation_checkpointing_enable", None) or named.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def in_attention(name: str) -> bool:
    """Tell whether a layer of a block belongs to its attention, by its name; the others are its feed-forward part.

    Example:
        >>> [in_attention(name) for name in ("layers.0.self_attn.q_proj", "h.0.attention.dense", "h.0.mlp.up_proj")]
        [True, True, False]
    """
    return "attn" in name or "attention" in name


def linear_layers(model: nn.Module, attention: bool = True) -> dict[str, nn.Linear]:
    """Return the linear layers of a model's blocks by name, with or without those of attention."""
    prefix, blocks = find_blocks(model)
    found = {f"{prefix}.{n}": each for n, each in blocks.named_modules() if isinstance(each, nn.Linear)}
    return {name: each for name, each in found.items() if attention or not in_attention(name)}


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in eval mode and give every module its own mode back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode

"""Adapters of PEFT: put beside a model's layers, masked where it was pruned, merged at the end."""

from __future__ import annotations

import importlib.util
import warnings
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lowdim.core.errors import RecipeError
from lowdim.core.masks import Masks
from lowdim.core.random import derive_seed
from lowdim.train.finetune.recipe import Adapter


def check_peft() -> None:
    """Refuse an adapter where PEFT is not installed.

    Raises:
        RecipeError: says what to install.
    """
    if importlib.util.find_spec("peft") is None:
        raise RecipeError('an adapter needs the package peft: pip install "lowdim[lora]", or take method=lift or full.')


def wrap(model: PreTrainedModel, adapter: Adapter, masks: Masks | None, seed: int) -> nn.Module:
    """Return a model with an adapter beside every linear layer but the head; nothing else is trained.

    Args:
        model: as it is trained on.
        adapter: which, and how large.
        masks: the kept weights of a pruned model; None of a dense one.
        seed: of the factors.

    Raises:
        RecipeError: a layer is too small for the rank.
    """
    import peft

    from lowdim.train.adapters.peft import mask_lora

    _check_rank(model, adapter.rank)
    config = peft.LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha or 2 * adapter.rank,
        lora_dropout=adapter.dropout,
        use_dora=adapter.name == "dora",
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PEFT's own
        torch.manual_seed(derive_seed(seed, "finetune", "adapter"))
        made: nn.Module = peft.get_peft_model(model, config)
    if masks is not None:
        mask_lora(made, masks)
    return made


def _check_rank(model: PreTrainedModel, rank: int) -> None:
    """Refuse a rank that a linear layer cannot have; the head gets no adapter."""
    head = model.get_output_embeddings()
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear | Conv1D) and layer is not head and rank > min(layer.weight.shape):
            raise RecipeError(
                f"adapter.rank={rank} exceeds the smaller side of a matrix of {layer.weight.shape[0]} x "
                f"{layer.weight.shape[1]}, {name}. Take at most adapter.rank={min(layer.weight.shape)}."
            )


def merged(model: Any) -> Any:
    """Return the stock model whose weights are those that were trained."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.merge_and_unload()

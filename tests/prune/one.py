"""One layer on the engine's bench, without a model around it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lowdim.core.statistics import InputStatistics
from lowdim.models.structure.layers import Layer
from lowdim.prune.bench import Outcome
from lowdim.prune.budgets import Budget
from lowdim.prune.engine import Engine
from lowdim.prune.recipe import Recipe


def matrix(rows: int, cols: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))


def inputs(tokens: int, cols: int, seed: int = 1) -> Tensor:
    """Correlated inputs, some columns much larger than others."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(tokens, cols, generator=generator) @ torch.randn(cols, cols, generator=generator)
    return mixed / cols**0.5 * torch.linspace(0.5, 3.0, cols) + 0.2


def statistics(x: Tensor, needs: frozenset[str]) -> InputStatistics:
    made = InputStatistics(x.shape[1], needs)
    made.add(x)
    return made


def layer(weight: Tensor, name: str = "blocks.0.attn.q_proj", turned: bool = False) -> Layer:
    """Return a layer that holds ``weight [out, in]``, in a Conv1D if ``turned``."""
    module: nn.Module
    if turned:
        module = Conv1D(*weight.shape)
        module.weight = nn.Parameter(weight.t().contiguous())
    else:
        module = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        module.weight = nn.Parameter(weight.clone())
    held = module.weight
    assert isinstance(held, Tensor)
    return Layer(name, module, f"{name}.weight", held.data)


def keep_of(recipe: Recipe, weight: Tensor) -> int:
    return weight.numel() - round(recipe.target * weight.numel())


def prune(
    recipe: Recipe, weight: Tensor, x: Tensor, *, name: str = "blocks.0.attn.q_proj", turned: bool = False
) -> tuple[Tensor, Outcome]:
    """Prune one layer; return its new weight ``[out, in]`` and the outcome."""
    made = layer(weight, name, turned)
    gradients = {name: matrix(*weight.shape, seed=2)}
    engine = Engine(recipe, {name: Budget(recipe.legal, keep_of(recipe, weight))}, gradients)
    [outcome] = engine.prune([made], statistics(x, engine.needs))
    held = made.module.weight
    assert isinstance(held, Tensor)
    return (held.t() if turned else held).detach().clone(), outcome

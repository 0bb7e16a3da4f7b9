"""Sanity checks of masks chosen before training: does it matter which weights, or only how many per layer?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lowdim.core.errors import RecipeError
from lowdim.core.random import derive_seed
from lowdim.train.initial.base import shapes_of
from lowdim.train.initial.random import draw_counts


def shuffled(masks: Mapping[str, Tensor], seed: int = 0) -> dict[str, Tensor]:
    """Return masks with the same count per layer at random positions.

    If training with shuffled masks is as good, the method found layer-wise shares, not weights.

    Paper: "Pruning Neural Networks at Initialization: Why are We Missing the Mark?", arXiv 2009.08576.

    Example:
        >>> int(shuffled({"a": torch.eye(4, dtype=torch.bool)})["a"].sum())
        4
    """
    counts = {name: int(mask.sum()) for name, mask in masks.items()}
    drawn = draw_counts(shapes_of(masks), counts, seed)
    return {name: drawn[name].to(mask.device) for name, mask in masks.items()}


def reinitialise_(model: nn.Module, seed: int = 0) -> nn.Module:
    """Draw a network's weights anew, in place, by each module's own ``reset_parameters``; the masks stay valid.

    If training from other weights under the same masks is as good, the masks do not fit these weights in particular.
    The global random state is put back.

    Raises:
        RecipeError: a module holds parameters that it cannot draw anew.

    Paper: arXiv 2009.08576, and for lottery tickets arXiv 1803.03635.

    Example:
        >>> net = nn.Linear(2, 2)
        >>> before = net.weight.clone()
        >>> bool((reinitialise_(net).weight == before).any())
        False
    """
    owners = [(name, m) for name, m in model.named_modules() if any(p is not None for p in m._parameters.values())]
    for name, module in owners:
        if not callable(_reset(module)):
            raise RecipeError(
                f"{name or type(module).__name__} ({type(module).__name__}) has no reset_parameters: build the model "
                "anew with another seed instead"
            )
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(derive_seed(seed, "reinitialise"))
        for _, module in owners:
            _reset(module)()
    return model


def _reset(module: nn.Module) -> Any:
    return getattr(module, "reset_parameters", getattr(module, "_reset_parameters", None))

"""Swap the linear layers of a model for truly sparse ones."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from lowdim.core.errors import LowdimError, suggest
from lowdim.core.masks import as_mask
from lowdim.nn.csr.linear import CSRLinear


def sparse_(model: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
    """Replace linear layers by `CSRLinear` ones that hold only what their mask keeps, in place.

    Make the optimizer afterwards: the dense weights are gone.

    Args:
        model: holds the layers.
        masks: bool [out, in] by the name of the weight ("layers.0.weight") or of the layer ("layers.0").

    Returns:
        The model.

    Raises:
        LowdimError: a name is no linear layer of the model, a weight is tied to another, or a mask does not fit;
            nothing has been changed then.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> sparse_(net, {"0.weight": torch.eye(4, dtype=torch.bool)})[0]
        CSRLinear(in_features=4, out_features=4, bias=True, kept=4, sparsity=0.7500)
    """
    made = {}
    for given, mask in masks.items():
        name = given.removesuffix(".weight")
        made[name] = CSRLinear.from_linear(_linear(model, name), as_mask(given, mask))
    for name, layer in made.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer)
    return model


def _linear(model: nn.Module, name: str) -> nn.Linear:
    linear = {n: m for n, m in model.named_modules() if type(m) is nn.Linear}
    stacked = next((p for n, p in model.named_parameters() if n == name and p.dim() > 2), None)
    if stacked is not None:
        raise LowdimError(
            f"{name!r} holds {len(stacked)} matrices in one tensor, which its module multiplies by itself: no "
            "CSRLinear can take their place. Train them masked, or leave them out"
        )
    if name not in linear:
        raise LowdimError(f"{name!r} is not a linear layer of the model. {suggest(name, linear)}")
    if not name:
        raise LowdimError(
            "the model itself is a linear layer, which cannot be replaced in place: CSRLinear.from_linear"
        )
    weight = linear[name].weight
    users = [n for n, p in model.named_parameters(remove_duplicate=False) if p is weight]
    if len(users) > 1:
        raise LowdimError(f"{' and '.join(users)} are one tied weight, which cannot be replaced in one of its places.")
    return linear[name]

"""Factorised models on disk: ``LAYER.a`` and ``LAYER.b`` in the place of a weight, and the layers that they become.

They lie in files of packed storage, which stock Transformers does not find: it would fill the layers with random
numbers. `lowdim.models.save.save_factors` writes them.
"""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from lowdim.core.errors import CheckpointError
from lowdim.models.disk.checkpoint import Checkpoint
from lowdim.models.disk.factors import Factors
from lowdim.nn.lowrank import NOT_STOCK, LowRankLinear, put
from lowdim.nn.stock import refuse_to_save


def put_factors(model: PreTrainedModel, checkpoint: Checkpoint) -> None:
    """Replace the layers of a model that are stored as factors by `LowRankLinear`, in their dtype and place.

    Raises:
        CheckpointError: factors belong to no linear layer of the model.
    """
    for name in checkpoint.ranks:
        stored = checkpoint.as_stored(name)
        assert isinstance(stored, Factors)
        path = layer_of(model, name)
        layer = model.get_submodule(path)
        assert isinstance(layer, nn.Linear)
        put(model, path, LowRankLinear.holding(layer, stored.a, stored.b))
    if checkpoint.ranks:
        refuse_to_save(model, NOT_STOCK)


def layer_of(model: PreTrainedModel, name: str) -> str:
    """Return the path of the linear layer that a weight on disk belongs to.

    Raises:
        CheckpointError: there is none.
    """
    path = name.removesuffix(".weight")
    modules = dict(model.named_modules())
    for each in (path, f"{model.base_model_prefix}.{path}"):
        if isinstance(modules.get(each), nn.Linear):
            return each
    raise CheckpointError(
        f"{name!r} is the weight of no linear layer of {type(model).__name__}, and cannot be two factors. Leave it a "
        "matrix: lowdim convert --storage dense makes one of it."
    )

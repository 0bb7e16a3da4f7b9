"""SLoRB on disk: tensors ``LAYER.slorb.s`` and ``.p`` beside the weights, and the modules that they are read into.

They lie in files of packed storage alone, which stock Transformers does not find: it would pass over them without a
word.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lowdim.core.errors import CheckpointError
from lowdim.models.disk.packed_header import BESIDE, is_beside
from lowdim.nn.slorb import NAME, NOT_STOCK, SLoRB, attach
from lowdim.nn.stock import refuse_to_save


def put_beside(model: PreTrainedModel, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Put a `SLoRB` beside each layer that a checkpoint has one for, with S = 0, in the dtype and place of its weight.

    Args:
        model: as its config describes it, with or without weights.
        shapes: of the tensors on disk, by name; others than those of a `SLoRB` are passed over.

    Raises:
        CheckpointError: a tensor belongs to no layer of the model, or does not fit it.
    """
    paths = dict.fromkeys(_path(name) for name in shapes if is_beside(name))
    for path in paths:
        layer = _layer(model, path)
        weight = layer.weight
        assert isinstance(weight, Tensor)
        out, width = weight.shape[::-1] if isinstance(layer, Conv1D) else weight.shape
        s, p = (shapes.get(f"{path}{end}") for end in BESIDE)
        if s is None or len(s) != 2 or s[0] != out or not s[1] or width % s[1] or p not in (None, (width,)):
            raise CheckpointError(
                f"the SLoRB of {path!r} has S {s} and p {p}, which do not fit a layer of {out} x {width}. Check that "
                "both come from the same model."
            )
        attach(layer, SLoRB(width, out, width // s[1], p is not None, weight.dtype, weight.device))
    if paths:
        refuse_to_save(model, NOT_STOCK)


@torch.no_grad()
def fill_beside(model: PreTrainedModel, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Copy tensors on disk into what `put_beside` made."""
    for name, tensor in tensors:
        part = _layer(model, _path(name)).get_submodule(NAME).get_parameter(name.rpartition(".")[2])
        part.copy_(tensor)


def _path(name: str) -> str:
    """Return the layer that a tensor stands beside."""
    return name.removesuffix(BESIDE[0]).removesuffix(BESIDE[1])


def _layer(model: PreTrainedModel, path: str) -> nn.Module:
    for each in (path, f"{model.base_model_prefix}.{path}"):
        try:
            layer = model.get_submodule(each)
        except AttributeError:
            continue
        if isinstance(layer, nn.Linear | Conv1D):
            return layer
    raise CheckpointError(f"the SLoRB of {path!r} stands beside no linear layer of {type(model).__name__}")

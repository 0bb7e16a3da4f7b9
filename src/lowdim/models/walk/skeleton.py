"""The one place that touches Transformers' loading internals: a model without weights, filled part by part.

Checkpoints and modules do not always agree on names and shapes (a mixture of experts is one tensor per expert on disk
and one 3-D tensor in memory). Transformers holds the rules; `Skeleton` applies them to a few tensors at a time, in both
directions, so that a block can be read, pruned and written without the rest of the model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
    convert_and_load_state_dict_in_model,
    rename_source_key,
    revert_weight_conversion,
)
from transformers.modeling_utils import LoadStateDictConfig
from transformers.utils import logging as transformers_logging

from lowdim.core.errors import CheckpointError

_STACKED = ([(MergeModulelist, 0)], [(MergeModulelist, 0), (Concatenate, 1)])


class Reader(Protocol):
    """What a skeleton is filled from: names and fresh tensors (`lowdim.models.disk.checkpoint.Checkpoint`)."""

    def names(self) -> Iterable[str]:
        """Return the names of the tensors on disk."""

    def read(self, name: str) -> Tensor:
        """Return a copy of one tensor."""


@contextmanager
def _quiet() -> Iterator[None]:
    enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            transformers_logging.enable_progress_bar()


def empty_model(path: Path, dtype: torch.dtype, trust_remote_code: bool = False) -> PreTrainedModel:
    """Build the causal LM of a checkpoint directory with every parameter on the meta device and real buffers."""
    config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    with _quiet(), init_empty_weights(include_buffers=False):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, dtype=dtype, trust_remote_code=trust_remote_code, experts_implementation="eager"
        )
    model.eval()
    return model


def saved_names(model: PreTrainedModel, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return parameters of a complete model under the names, and in the shapes, that ``save_pretrained`` gives them."""
    return dict(revert_weight_conversion(model, dict(parameters)))


class Skeleton:
    """A causal LM whose parameters come and go, and the names they have on disk."""

    def __init__(self, model: PreTrainedModel, reader: Reader, dtype: torch.dtype) -> None:
        self.model = model
        self.dtype = dtype
        self._mapping: list[Any] = list(get_model_conversion_mapping(model))
        self._used: dict[int, Any] = {}
        self._parameter: dict[str, str] = {}
        self._renamed: dict[str, str] = {}
        self._expert: dict[str, tuple[int, int]] = {}
        self._map_names(reader.names())

    def _map_names(self, disk_names: Iterable[str]) -> None:
        renamings = [m for m in self._mapping if isinstance(m, WeightRenaming)]
        converters = [m for m in self._mapping if isinstance(m, WeightConverter)]
        empty = self.model.state_dict()
        for name in disk_names:
            target, pattern = rename_source_key(name, renamings, converters, self.model.base_model_prefix, empty)
            if target not in empty and name in empty:
                target, pattern = name, None
            self._parameter[name] = target
            if pattern is None:
                self._renamed[target] = name
            elif part := _expert_part(name, pattern, converters):
                self._expert[name] = part

    def disk_names(self, prefix: str) -> list[str]:
        """Return the names on disk of all that lies under a module, in the order of the checkpoint."""
        return [name for name, target in self._parameter.items() if target.startswith(prefix)]

    def fill(self, reader: Reader, disk_names: Iterable[str]) -> None:
        """Load tensors into the model's parameters.

        Raises:
            CheckpointError: a tensor has the wrong shape or cannot be converted.
        """
        state = {name: reader.read(name) for name in disk_names}
        load = LoadStateDictConfig(dtype=self.dtype, weight_mapping=self._mapping, device_map={"": "cpu"})
        with _quiet():
            info, _ = convert_and_load_state_dict_in_model(self.model, state, load)
        for index, conversion in enumerate(self._mapping):
            if conversion.was_used():
                self._used[index] = conversion
        if info.mismatched_keys or info.conversion_errors:
            wrong = [str(key) for key in info.mismatched_keys] + [
                f"{k}: {v}" for k, v in info.conversion_errors.items()
            ]
            raise CheckpointError(
                f"the checkpoint does not fit its config.json: {'; '.join(wrong[:3])}. Check that both come from the "
                "same model."
            )

    def to_disk(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors under the names, and in the shapes, that the checkpoint has for them.

        Raises:
            CheckpointError: Transformers has no way back for a parameter.
        """
        plain = {self._renamed[n]: t for n, t in parameters.items() if n in self._renamed}
        fused = {n: t for n, t in parameters.items() if n not in self._renamed}
        if fused:
            self.model.__dict__["_weight_conversions"] = [self._used[i] for i in sorted(self._used)]
            plain |= revert_weight_conversion(self.model, fused)
        unknown = sorted(set(plain) - set(self._parameter))
        if unknown:
            raise CheckpointError(
                f"cannot name {unknown[0]!r} as the checkpoint does. Load the model with Transformers, save it again "
                "and prune that copy."
            )
        return plain

    def parameter_of(self, disk_name: str) -> str:
        """Return the first parameter that a tensor on disk becomes."""
        return self._parameter[disk_name]

    def is_whole(self, disk_name: str) -> bool:
        """Tell whether a tensor on disk is a parameter of the model as it is."""
        return self._renamed.get(self._parameter[disk_name]) == disk_name

    def expert_part(self, disk_name: str) -> tuple[int, int] | None:
        """Return which expert's a matrix on disk is, and its place among those of this expert that are stacked.

        ``None`` for whatever is not the matrix of one expert.
        """
        return self._expert.get(disk_name)


def _expert_part(name: str, pattern: str, converters: list[WeightConverter]) -> tuple[int, int] | None:
    """Return which expert's a matrix is, and its place among those of this expert that Transformers stacks."""
    converter = next(c for c in converters if pattern in c.source_patterns)
    steps = [(type(step), getattr(step, "dim", None)) for step in converter.operations]
    number = re.search(re.escape(pattern).replace(r"\*", r"(\d+)"), name)
    if number is None or not number.groups() or steps not in _STACKED:
        return None
    return int(number[1]), converter.source_patterns.index(pattern)


def unload(module: nn.Module, dtypes: Mapping[str, torch.dtype] | None = None) -> None:
    """Move every parameter of a module to the meta device.

    Args:
        module: the module.
        dtypes: by name, what the parameters were loaded as. Loading again casts to the dtype found here, so one
            that stayed in the compute dtype would round the weights.
    """
    for prefix, child in module.named_modules():
        for name, parameter in list(child.named_parameters(recurse=False)):
            if not parameter.is_meta:
                dtype = (dtypes or {}).get(f"{prefix}.{name}" if prefix else name, parameter.dtype)
                meta = torch.empty_like(parameter, dtype=dtype, device="meta")
                setattr(child, name, nn.Parameter(meta, requires_grad=False))


def masters(module: nn.Module, compute: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    """Return a module's parameters as loaded and leave copies in the compute dtype, on the device, in their place."""
    held: dict[str, Tensor] = {}
    for prefix, child in module.named_modules():
        for name, parameter in list(child.named_parameters(recurse=False)):
            master = parameter.data.to(device)
            held[f"{prefix}.{name}" if prefix else name] = master
            working = master.to(compute) if master.is_floating_point() else master
            setattr(child, name, nn.Parameter(working, requires_grad=False))
    return held

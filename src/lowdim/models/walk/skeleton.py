"""The one place that touches Transformers' loading internals: a model without weights, filled part by part.

Checkpoints and modules do not always agree on names and shapes (a mixture of experts is one tensor per expert on disk
and one 3-D tensor in memory). Transformers holds the rules; `Skeleton` applies them to a few tensors at a time, in both
directions, so that a block can be read, pruned and written without the rest of the model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
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
from transformers.initialization import TORCH_INIT_FUNCTIONS
from transformers.modeling_utils import LoadStateDictConfig
from transformers.utils import logging as transformers_logging

from lowdim.core.errors import CheckpointError
from lowdim.models.disk.checkpoint import TensorInfo
from lowdim.models.load import read_config
from lowdim.models.walk.units import Unit, WaysBack, widest

_STACKED = ([(MergeModulelist, 0)], [(MergeModulelist, 0), (Concatenate, 1)])


class Reader(Protocol):
    """What a skeleton is filled from: names and fresh tensors (`lowdim.models.disk.checkpoint.Checkpoint`)."""

    def names(self) -> Iterable[str]:
        """Return the names of the tensors on disk."""

    def read(self, name: str) -> Tensor:
        """Return a copy of one tensor."""

    def info(self, name: str) -> TensorInfo:
        """Return a tensor's dtype and shape without reading it."""


@contextmanager
def _quiet() -> Iterator[None]:
    enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            transformers_logging.enable_progress_bar()


@contextmanager
def empty_weights() -> Iterator[None]:
    """Put the parameters of models made here on the meta device, and initialise none; buffers are real.

    There is nothing to fill, and torch takes a millisecond to find that out for each.
    """

    def unless_meta(fill: Callable[..., Any]) -> Callable[..., Any]:
        return lambda tensor, *how, **named: tensor if tensor.is_meta else fill(tensor, *how, **named)

    fills: dict[str, Any] = dict(TORCH_INIT_FUNCTIONS)
    TORCH_INIT_FUNCTIONS.update({name: unless_meta(fill) for name, fill in fills.items()})
    try:
        with init_empty_weights(include_buffers=False):
            yield
    finally:
        TORCH_INIT_FUNCTIONS.update(fills)


def empty_model(
    path: Path | PreTrainedConfig,
    dtype: torch.dtype,
    trust_remote_code: bool = False,
    compute: torch.dtype | None = None,
) -> PreTrainedModel:
    """Build the causal LM of a checkpoint directory, or a config, with its parameters on the meta device, real buffers.

    ``compute`` is the dtype that the model will run in, which its own constants have; ``dtype`` if not given.
    """
    config = read_config(path, trust_remote_code) if isinstance(path, Path) else path
    with _quiet(), empty_weights():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, dtype=compute or dtype, trust_remote_code=trust_remote_code, experts_implementation="eager"
        )
    if compute not in (None, dtype):
        model.config.dtype = dtype
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(dtype)
    hold_in_fp32(model.named_buffers(), in_fp32(model, compute or dtype))
    model.eval()
    return model


def in_fp32(model: PreTrainedModel, dtype: torch.dtype) -> Callable[[str], bool]:
    """Return what tells, by name, the weights that Transformers holds in fp32 in a model that it loads in ``dtype``."""
    words = "|".join(word.replace("*", ".*") for word in model._get_dtype_plan(dtype)) or "(?!)"
    return lambda name: re.search(words, name) is not None


def hold_in_fp32(held: Iterable[tuple[str, Tensor]], chosen: Callable[[str], bool]) -> None:
    """Give some weights fp32; what a checkpoint holds is loaded as the dtype that it finds."""
    for name, tensor in held:
        if tensor.is_floating_point() and chosen(name):
            tensor.data = tensor.data.float()


def saved_names(model: PreTrainedModel, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return parameters of a complete model under the names, and in the shapes, that ``save_pretrained`` gives them."""
    return dict(revert_weight_conversion(model, dict(parameters)))


class Skeleton:
    """A causal LM whose parameters come and go, and the names they have on disk.

    Args:
        model: the model, its parameters on the meta device.
        reader: the checkpoint.
        dtype: of every parameter; ``None`` leaves each tensor its own.

    Raises:
        CheckpointError: two tensors on disk are one parameter.
    """

    def __init__(self, model: PreTrainedModel, reader: Reader, dtype: torch.dtype | None) -> None:
        self.model = model
        self.dtype = dtype
        self._mapping: list[Any] = list(get_model_conversion_mapping(model))
        self._parameter: dict[str, str] = {}
        self._renamed: dict[str, str] = {}
        self._expert: dict[str, tuple[int, int]] = {}
        self._units: dict[str, Unit] = {}
        self._disk = {name: reader.info(name) for name in reader.names()}
        self._map_names()
        self._untie(reader)
        self._unit_of = {name: unit for unit in self._units.values() for name in unit.parameters}
        used = [rule for rule in self._mapping if rule.was_used()]
        self._ways = WaysBack(model, used, {name: info.shape for name, info in self._disk.items()})
        if dtype is None:
            self._take_dtypes()

    def _map_names(self) -> None:
        renamings = [m for m in self._mapping if isinstance(m, WeightRenaming)]
        converters = [m for m in self._mapping if isinstance(m, WeightConverter)]
        empty = self.model.state_dict()
        self._known = empty.keys()
        for name in self._disk:
            target, pattern = rename_source_key(name, renamings, converters, self.model.base_model_prefix, empty)
            if target not in empty and name in empty:
                target, pattern = name, None
            self._parameter[name] = target
            if pattern is None:
                other = self._renamed.setdefault(target, name)
                if other != name and target in empty:
                    raise CheckpointError(
                        f"{other!r} and {name!r} are one weight of the model, {target!r}. Remove one."
                    )
                continue
            rule = next(c for c in converters if pattern in c.source_patterns)
            if target in empty:
                self._units.setdefault(target, Unit(rule, target)).stored[name] = pattern
            if part := _expert_part(name, pattern, rule):
                self._expert[name] = part

    def _untie(self, reader: Reader) -> None:
        """Take for two what the config ties and the checkpoint has twice, with other numbers, as Transformers does."""
        for pair in self.model.all_tied_weights_keys.items():
            held = [reader.read(self._renamed[name]).float() for name in pair if name in self._renamed]
            if len(held) == 2 and not torch.equal(*held):
                for module in self.model.modules():
                    if isinstance(module, PreTrainedModel):
                        module.config.tie_word_embeddings = False

    def missing(self) -> list[str]:
        """Return the parameters that nothing on disk becomes, nor anything that they are tied to."""
        found = {*self._parameter.values(), *self._unit_of}
        for pair in self.model.get_expanded_tied_weights_keys(all_submodels=True).items():
            found |= set(pair) if found & set(pair) else set()
        made = "|".join(self.model._keys_to_ignore_on_load_missing or ()) or "(?!)"
        named = self.model.named_parameters(remove_duplicate=False)
        return [name for name, _ in named if name not in found and not re.search(made, name)]

    def _take_dtypes(self) -> None:
        """Give each empty parameter the dtype of its tensor on disk; of several, one that holds the values of all."""
        empty = dict(self.model.named_parameters(remove_duplicate=False))
        sources = {target: [name] for target, name in self._renamed.items()}
        sources |= {name: list(unit.stored) for name, unit in self._unit_of.items()}
        for target in sources.keys() & empty.keys():
            dtype = widest(self._disk[name].dtype for name in sources[target])
            if dtype.is_floating_point and empty[target].is_meta:
                empty[target].data = torch.empty_like(empty[target], dtype=dtype)

    def check_ways_back(self) -> None:
        """Refuse a checkpoint whose tensors could not be written again as they are, before anything is done.

        Raises:
            CheckpointError: Transformers computes a parameter from tensors in a way that cannot be undone.
        """
        for unit in self._units.values():
            self._ways.find(unit)

    def disk_names(self, prefix: str) -> list[str]:
        """Return the names on disk of all that lies under a module, in the order of the checkpoint."""
        return [name for name, target in self._parameter.items() if target.startswith(prefix)]

    def fill(self, reader: Reader, disk_names: Iterable[str]) -> None:
        """Load tensors into the model's parameters.

        Raises:
            CheckpointError: a tensor has the wrong shape or cannot be converted.
        """
        state = {name: reader.read(name) for name in disk_names if self.is_known(name)}
        load = LoadStateDictConfig(dtype=self.dtype, weight_mapping=self._mapping, device_map={"": "cpu"})
        with _quiet():
            info, _ = convert_and_load_state_dict_in_model(self.model, state, load)
        if info.mismatched_keys or info.conversion_errors:
            wrong = [str(key) for key in info.mismatched_keys] + [
                f"{k}: {v}" for k, v in info.conversion_errors.items()
            ]
            raise CheckpointError(
                f"the checkpoint does not fit its config.json: {'; '.join(wrong[:3])}. Check that both come from the "
                "same model."
            )

    def stored_with(self, parameter: str) -> list[str]:
        """Return the parameters that are one tensor on disk, or several, together with this one, itself included."""
        return self._unit_of[parameter].parameters if parameter in self._unit_of else [parameter]

    def to_disk(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors under the names, and in the shapes, that the checkpoint has for them.

        Args:
            parameters: by name; of those that are stored together (`stored_with`) all or none.

        Raises:
            CheckpointError: there is no way back for a parameter.
        """
        unknown = [name for name in parameters if name not in self._renamed and name not in self._unit_of]
        if unknown:
            raise CheckpointError(
                f"cannot name {unknown[0]!r} as the checkpoint does. Load the model with Transformers, save it again "
                "and prune that copy."
            )
        found = {self._renamed[n]: t for n, t in parameters.items() if n in self._renamed}
        for unit in dict.fromkeys(self._unit_of[name] for name in parameters if name in self._unit_of):
            found |= self._ways.go(unit, {name: parameters[name] for name in unit.parameters})
        return found

    def as_stored(self, disk_name: str, tensor: Tensor) -> Tensor:
        """Return a tensor in the dtype that it has on disk, unless all get another."""
        return tensor.to(self._disk[disk_name].dtype) if self.dtype is None else tensor

    def parameter_of(self, disk_name: str) -> str:
        """Return the first parameter that a tensor on disk becomes."""
        return self._parameter[disk_name]

    def is_known(self, disk_name: str) -> bool:
        """Tell whether the model has anything of a tensor on disk."""
        return self._parameter[disk_name] in self._known

    def is_whole(self, disk_name: str) -> bool:
        """Tell whether a tensor on disk is a parameter of the model as it is."""
        return self._renamed.get(self._parameter[disk_name]) == disk_name

    def expert_part(self, disk_name: str) -> tuple[int, int] | None:
        """Return which expert's a matrix on disk is, and its place among those of this expert that are stacked.

        ``None`` for whatever is not the matrix of one expert.
        """
        return self._expert.get(disk_name)


def _expert_part(name: str, pattern: str, rule: WeightConverter) -> tuple[int, int] | None:
    """Return which expert's a matrix is, and its place among those of this expert that Transformers stacks."""
    steps = [(type(step), getattr(step, "dim", None)) for step in rule.operations]
    number = re.search(re.escape(pattern).replace(r"\*", r"(\d+)"), name)
    if number is None or not number.groups() or steps not in _STACKED:
        return None
    return int(number[1]), rule.source_patterns.index(pattern)


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


def masters(
    module: nn.Module, compute: torch.dtype, device: torch.device, fp32: Callable[[str], bool] = lambda _: False
) -> dict[str, Tensor]:
    """Return a module's parameters as loaded and leave copies to compute with, on the device, in their place.

    The copies are of the compute dtype, but for those whose names ``fp32`` knows.
    """
    held: dict[str, Tensor] = {}
    for prefix, child in module.named_modules():
        for name, parameter in list(child.named_parameters(recurse=False)):
            master = parameter.data.to(device)
            full = f"{prefix}.{name}" if prefix else name
            held[full] = master
            own = torch.float32 if fp32(full) else compute
            working = master.to(own) if master.is_floating_point() else master
            setattr(child, name, nn.Parameter(working, requires_grad=False))
    return held

"""Tensors on disk that become parameters together, and the way back.

Transformers stacks, joins, splits, turns and permutes tensors while it loads them. Its own way back is taken where it
restores names, shapes and values; where it does not (a matrix joined from unequal parts comes back in equal ones), the
entries go back to where they came from one by one, since a conversion that only moves entries can be undone exactly.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    apply_converters,
    dot_natural_key,
    revert_weight_conversion,
)

from lowdim.core.errors import CheckpointError
from lowdim.core.random import generator


@dataclass(eq=False)
class Unit:
    """Tensors on disk and the parameters that Transformers makes of them.

    Attributes:
        converter: Transformers' rule.
        target: the first parameter, which names the unit.
        stored: the names on disk, each with the pattern of the rule that it fits.
    """

    converter: WeightConverter
    target: str
    stored: dict[str, str] = field(default_factory=dict)

    @property
    def parameters(self) -> list[str]:
        """Names of the parameters."""
        first, *rest = self.converter.target_patterns
        return [self.target, *(self.target.replace(first, other, 1) for other in rest)]

    def convert(self, model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what the unit's tensors on disk become in memory."""
        converter: Any = deepcopy(self.converter)
        for name in sorted(self.stored, key=dot_natural_key):
            converter.add_tensor(self.target, name, self.stored[name], tensors[name])
        made = converter.convert(self.target, model=model, config=model.config)
        return {name: part[0] if isinstance(part, list) else part for name, part in made.items()}


class WaysBack:
    """How units return to disk: found once per rule and shapes, with numbers made up for it.

    Args:
        model: the model, loaded by Transformers' rules.
        used: the rules that apply to the checkpoint.
        shapes: shape of every tensor on disk.
    """

    def __init__(self, model: PreTrainedModel, used: Sequence[Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._model, self._used, self._shapes = model, list(used), shapes
        self._found: dict[tuple[object, ...], bool] = {}

    def find(self, unit: Unit) -> bool:
        """Return whether Transformers' own way back is exact for a unit; if not, entries return one by one.

        Raises:
            CheckpointError: the unit is computed from its tensors, so that there is no way back.
        """
        key = (id(unit.converter), *(self._shapes[name] for name in sorted(unit.stored, key=dot_natural_key)))
        if key not in self._found:
            self._found[key] = self._is_exact(unit)
        return self._found[key]

    def go(self, unit: Unit, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the unit's tensors on disk, given all of its parameters."""
        return self._reverted(parameters) if self.find(unit) else self._traced(unit, parameters)

    def _reverted(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        self._model.__dict__["_weight_conversions"] = self._used
        return dict(revert_weight_conversion(self._model, dict(parameters)))

    def _is_exact(self, unit: Unit) -> bool:
        draw = generator(0, "units")
        given = {n: torch.randint(256, self._shapes[n], dtype=torch.uint8, generator=draw) for n in unit.stored}
        try:
            back = self._reverted(unit.convert(self._model, given))
        except Exception:  # a rule without a reverse fails in ways of its own
            back = {}
        if back.keys() == given.keys() and all(torch.equal(back[name], given[name]) for name in given):
            return True
        self._origins(unit)
        return False

    def _origins(self, unit: Unit) -> dict[str, Tensor]:
        """Return, for each parameter, which entry of the unit's tensors on disk, laid end to end, each entry is.

        Raises:
            CheckpointError: an entry on disk is not in the parameters, or is there twice.
        """
        total, numbered = 0, dict[str, Tensor]()
        for name in unit.stored:
            size = torch.Size(self._shapes[name])
            numbered[name] = torch.arange(total, total + size.numel()).reshape(size)
            total += size.numel()
        why = "entries are lost on the way"
        try:
            origins = unit.convert(self._model, numbered)
            found = torch.cat([part.flatten() for part in origins.values()])
            if origins.keys() == set(unit.parameters) and torch.equal(found.sort().values, torch.arange(total)):
                return origins
        except Exception as error:  # operations that need other numbers, or other shapes
            why = str(error)
        raise CheckpointError(
            f"{unit.target!r} is made from {len(unit.stored)} tensors of the checkpoint, first "
            f"{min(unit.stored)!r}, in a way that cannot be undone ({why}), so that it could not be written as it was. "
            "Load the model with Transformers, save it again and prune that copy."
        )

    def _traced(self, unit: Unit, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        origins = self._origins(unit)
        flat = torch.empty(sum(part.numel() for part in origins.values()), dtype=parameters[unit.target].dtype)
        for name, origin in origins.items():
            flat[origin.flatten()] = parameters[name].detach().flatten().to("cpu", flat.dtype)
        sizes = [torch.Size(self._shapes[name]) for name in unit.stored]
        parts = flat.split([size.numel() for size in sizes])
        return {n: part.reshape(size).clone() for n, part, size in zip(unit.stored, parts, sizes, strict=True)}


def saved_together(model: PreTrainedModel) -> dict[str, list[str]]:
    """Return, for each parameter of a model in memory, those that ``save_pretrained`` writes as tensors with it."""
    rules = getattr(model, "_weight_conversions", None)
    if rules is None:
        rules = get_model_conversion_mapping(model, add_legacy=False)
    reverse: list[Any] = [rule.reverse_transform() for rule in reversed(rules) if isinstance(rule, WeightConverter)]
    groups: dict[str, list[str]] = {}
    for name in model.state_dict():
        key, pattern = apply_converters(name, reverse)
        groups.setdefault(name if pattern is None else key, []).append(name)
    return {name: group for group in groups.values() for name in group}


def widest(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """Return the smallest dtype that holds the values of all.

    Example:
        >>> widest([torch.bfloat16, torch.float16]), widest([torch.bfloat16])
        (torch.float32, torch.bfloat16)
    """
    first, *rest = dict.fromkeys(dtypes)
    for other in rest:
        first = torch.promote_types(first, other)
    return first

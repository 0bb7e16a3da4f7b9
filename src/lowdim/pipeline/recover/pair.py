"""A pruned model and the dense one that it is to be like again."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lowdim.core.errors import LowdimError
from lowdim.core.pattern import Pattern, parse
from lowdim.models.disk import manifest
from lowdim.models.disk.manifest import Manifest
from lowdim.models.disk.masks import masks_in
from lowdim.models.disk.source import is_hub, resolve
from lowdim.models.structure.layers import Layer
from lowdim.models.structure.zeros import mask_of
from lowdim.models.walk.opened import Opened, open_model
from lowdim.models.walk.stream import Block, Stream
from lowdim.pipeline.recover.recipe import Recovery
from lowdim.prune.recipe import Recipe
from lowdim.prune.session import Session, open_session


@dataclass(frozen=True)
class Pair:
    """What a recovery works on.

    Attributes:
        recipe: of the recovery.
        student: the pruned model, opened for writing it again.
        teacher: the dense model.
        teacher_name: how it was named.
        record: the student's ``lowdim.json``; ``None`` if it has none.
    """

    recipe: Recovery
    student: Session
    teacher: Opened
    teacher_name: str
    record: Manifest | None

    @property
    def targets(self) -> dict[str, float | None]:
        """The share of zeros that each layer was to have when it was pruned; ``None`` where nobody says."""
        known = self.record.layers if self.record else {}
        return {info.name: known[info.name].target if info.name in known else None for info in self.student.layers}

    @property
    def pruned(self) -> set[str]:
        """Names of the layers that were pruned on purpose, as the record says."""
        return {name for name, share in self.targets.items() if share}

    @property
    def pattern(self) -> Pattern:
        """What moving masks must be like: N:M as the student was pruned, else as many zeros in every matrix as now."""
        made = Recipe(**self.record.recipe).legal if self.record and self.record.recipe else None
        return made if made is not None and made.groups_of else parse("unstructured").resolve("matrix")

    def check_weights(self) -> None:
        """Read every weight once and refuse what cannot be trained, or does not fit its record.

        Raises:
            LowdimError: NaN or Inf, or a mask other than ``lowdim.json`` records.
        """
        self.student.check_weights()
        self.teacher.check_weights()
        if self.record is not None and self.student.source is not None:
            masks_in(self.student.source.path)


def open_pair(model: str | Path, recipe: Recovery, *, revision: str | None = None) -> Pair:
    """Open both models; no weight is read.

    Raises:
        LowdimError: a model cannot be used, there is no teacher, the two differ in shape, or the student was rounded
            and is not to be rounded again.
    """
    source = resolve(str(model), revision=revision, trust_remote_code=recipe.trust_remote_code)
    record = manifest.read(source.path) if manifest.exists(source.path) else None
    storage = record.storage if record else "dense"
    _refuse_rounded(model, record, recipe)
    name, of = _teacher(model, record, recipe)
    student = open_session(str(model), recipe.writing(storage), revision=revision)
    trusted = recipe.trust_remote_code
    teacher = open_model(name, revision=of, compute=recipe.compute, device=recipe.device, trust_remote_code=trusted)
    _compare(student.stream, teacher.stream, name)
    return Pair(recipe, student, teacher, name, record)


def _refuse_rounded(model: str | Path, record: Manifest | None, recipe: Recovery) -> None:
    grid = "none" if record is None else manifest.grid_of(record)
    if grid != "none" and recipe.grid is None:
        raise LowdimError(
            f"{model} holds weights that were rounded to {grid}; training moves them off that grid. Recover the model "
            f"from before it was rounded, or train through the grid: use quantize={grid!r}."
        )


def _teacher(model: str | Path, record: Manifest | None, recipe: Recovery) -> tuple[str, str | None]:
    """Return how the dense model is named, and its revision where that is recorded."""
    if recipe.teacher is not None:
        return recipe.teacher, None
    if record is None:
        raise LowdimError(
            f"{model} has no {manifest.FILE} that says which dense model it was made from. Name it: use teacher=DENSE."
        )
    source = record.model.source
    return source, record.model.revision if is_hub(source) else None  # of a file it is the content's hash


def _compare(student: Stream, teacher: Stream, name: str) -> None:
    """Refuse a teacher whose blocks or vocabulary are not those of the student."""
    own, other = _shapes(student), _shapes(teacher)
    wrong = next((key for key in [*own, *other] if own.get(key) != other.get(key)), None)
    if wrong is not None:
        raise LowdimError(
            f"the teacher {name!r} is not the dense form of this model: {wrong} is {_said(own.get(wrong))} here and "
            f"{_said(other.get(wrong))} there. Name the model that was pruned: use teacher=DENSE."
        )


def _shapes(stream: Stream) -> dict[str, list[int]]:
    table: Any = stream.model.get_input_embeddings()
    found = {"the vocabulary's embedding": list(table.weight.shape), "the number of blocks": [len(stream)]}
    for index, block in enumerate(stream.blocks):
        names = block.named_parameters()
        found |= {f"{stream.block_name(index)}.{name}": list(parameter.shape) for name, parameter in names}
    return found


def _said(shape: list[int] | None) -> str:
    return "missing" if shape is None else " x ".join(map(str, shape))


@dataclass(frozen=True)
class Trained:
    """What is trained of a block: its layers' weights, and its norms and biases.

    Attributes:
        layers: by parameter, the layer whose weight it is.
        others: by parameter, its name within the block.
        masters: by parameter, the weight as the checkpoint has it, until it is written.
        masks: by parameter, the kept entries, bool of its shape, of every layer that has pruned ones.
    """

    layers: Mapping[nn.Parameter, Layer]
    others: Mapping[nn.Parameter, str]
    masters: Mapping[nn.Parameter, Tensor]
    masks: Mapping[nn.Parameter, Tensor]

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All of them."""
        return [*self.layers, *self.others]


def trained(block: Block, names: set[str], pruned: Container[str] = ()) -> Trained:
    """Return what is trained of a block.

    Args:
        block: of the student.
        names: of the layers that may be trained.
        pruned: of those whose zeros are its mask, however few they are.
    """
    layers: dict[nn.Parameter, Layer] = {}
    for layer in block.layers:
        weight = layer.module.weight
        if layer.name in names and isinstance(weight, nn.Parameter):
            layers[weight] = layer
    others = {p: n for n, p in block.module.named_parameters() if p.dim() < 2 and p.is_floating_point()}
    masters = {parameter: layer.master for parameter, layer in layers.items()}
    found = {p: mask_of(masters[p], layer.name in pruned) for p, layer in layers.items()}
    masks = {parameter: mask for parameter, mask in found.items() if mask is not None}
    masters |= {parameter: block.masters[name] for parameter, name in others.items()}
    return Trained(layers, others, masters, masks)
